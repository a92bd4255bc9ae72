package nethttpserver

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -type call -type layout -type request_layout -type h2_layout -type outcome -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unused-function -mcpu=v3 -I../../bpf -I/usr/include/x86_64-linux-gnu" server probe.bpf.c
