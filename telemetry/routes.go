package telemetry

import "strings"

// routeGuesser makes a low-cardinality name of a path where the framework
// gives no route. It is used in span names and the summary, never as http.route.
// A segment that looks like an identifier becomes {id}; a place in the tree with
// too many different children becomes one {*}; the whole tree is bounded.
type routeGuesser struct {
	root     routeNode
	nodes    int
	Overflow uint64 // paths that found the tree full
}

type routeNode struct {
	children map[string]*routeNode
	any      *routeNode // once there were too many children
	name     string     // the guessed route up to here
}

const (
	maxRouteNodes    = 400
	maxRouteChildren = 40
	maxRouteDepth    = 8
	routeOverflow    = "{other}"
)

// guess returns the route for path; the result does not alias path.
func (g *routeGuesser) guess(path string) string {
	n := &g.root
	for depth := 0; ; depth++ {
		path = strings.TrimLeft(path, "/")
		if path == "" {
			break
		}
		segment := path
		if i := strings.IndexByte(path, '/'); i >= 0 {
			segment, path = path[:i], path[i:]
		} else {
			path = ""
		}
		if depth == maxRouteDepth {
			segment, path = "{*}", ""
		} else if looksLikeID(segment) {
			segment = "{id}"
		}
		next := n.any
		if next == nil {
			next = n.children[segment]
		}
		if next == nil {
			if g.nodes >= maxRouteNodes {
				g.Overflow++
				return routeOverflow
			}
			g.nodes++
			if len(n.children) >= maxRouteChildren && segment != "{id}" {
				n.any = &routeNode{name: n.name + "/{*}"}
				n.children = nil
				next = n.any
			} else {
				segment = strings.Clone(segment)
				next = &routeNode{name: n.name + "/" + segment}
				if n.children == nil {
					n.children = map[string]*routeNode{}
				}
				n.children[segment] = next
			}
		}
		n = next
	}
	if n == &g.root {
		return "/"
	}
	return n.name
}

// looksLikeID: numbers, and long words that mix digits in, as UUIDs and hashes do.
func looksLikeID(s string) bool {
	digits, hex := 0, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			digits++
			hex++
		case c >= 'a' && c <= 'f', c >= 'A' && c <= 'F', c == '-':
			hex++
		case c < 0x20 || c > 0x7e:
			return true
		}
	}
	if digits == len(s) {
		return true
	}
	return digits > 0 && (hex == len(s) && len(s) >= 8 || len(s) >= 16 && digits >= 4) || len(s) > 40
}
