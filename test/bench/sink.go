package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// The sink counts spans and does as little else as it can: it shares the
// machine with what is measured. It says its URL; each line on its standard
// input is answered with the number of spans so far.
func runSink() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var spans atomic.Int64
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20), grpc.ForceServerCodecV2(rawCodec{}),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			var in raw
			if err := stream.RecvMsg(&in); err != nil {
				return err
			}
			method, _ := grpc.MethodFromServerStream(stream)
			if strings.Contains(method, "TraceService") {
				n, err := countSpans(in)
				if err != nil {
					return err
				}
				spans.Add(n)
			}
			out := raw(nil) // an empty message: full success
			return stream.SendMsg(&out)
		}))
	go s.Serve(l)
	fmt.Println("http://" + l.Addr().String())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println(spans.Load())
	}
	return nil
}

type raw []byte

// rawCodec leaves messages as bytes.
type rawCodec struct{}

var _ encoding.CodecV2 = rawCodec{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*raw))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*raw) = data.Materialize()
	return nil
}

// countSpans counts request.resource_spans(1).scope_spans(2).spans(2).
func countSpans(request []byte) (n int64, err error) {
	err = each(request, 1, func(resourceSpans []byte) error {
		return each(resourceSpans, 2, func(scopeSpans []byte) error {
			return each(scopeSpans, 2, func([]byte) error {
				n++
				return nil
			})
		})
	})
	return n, err
}

func each(message []byte, field protowire.Number, visit func([]byte) error) error {
	for len(message) > 0 {
		num, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		n = protowire.ConsumeFieldValue(num, typ, message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if num == field && typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(message)
			if err := visit(v); err != nil {
				return err
			}
		}
		message = message[n:]
	}
	return nil
}
