package kernels

// Target is a traced process; each is built statically and started once.
type Target struct {
	Dir string // under test/targets
	Go  string // the toolchain; so that old kernels meet old binaries as well
	// Args are its arguments; {name} is an address as in Step.Do.
	Args []string
	// Reads: it takes operations from its standard input. The others are servers,
	// whose first line names the addresses for HTTP and HTTPS.
	Reads bool
	// Noise begins the paths of the calls that it makes by itself. They are not
	// counted, and must have no parent.
	Noise string
}

// Targets are traced by one zerospan, all at once.
var Targets = map[string]Target{
	"server": {Dir: "nethttp", Go: "1.26.5"},
	"old":    {Dir: "nethttp", Go: "1.20.14"}, // probed behind another kind of stack check
	"tree":   {Dir: "tree", Go: "1.26.5", Args: []string{"{backend}"}, Noise: "/periodic/"},
	"client": {Dir: "client", Go: "1.26.5", Reads: true},
}

// Step is what the guest has a target do, and the calls that it must give. In all
// its strings N is a number that is used once.
type Step struct {
	Target string
	// Do is an operation for a target that reads them, with an address of the
	// guest in braces, or else a request: method and path, before it "h2" for
	// HTTP/2, or "alone" for a connection of its own.
	Do    string
	Times int
	Calls []string // as Call.String gives them
}

// Steps exercise every instrumentor: a new one gets its own here.
var Steps = []Step{
	{"server", "GET /hello", 50, []string{"nethttp-server GET /hello /hello 200"}},
	{"server", "GET /items/N", 20, []string{"nethttp-server GET /items/N /items/{id} 200"}},
	{"server", "GET /mw/items/N", 10, []string{"nethttp-server GET /mw/items/N /items/{id} 200"}},
	{"server", "POST /echo", 10, []string{"nethttp-server POST /echo /echo 200"}},
	{"server", "GET /nowhere/N", 5, []string{"nethttp-server GET /nowhere/N 404"}},
	{"server", "GET /status/503", 5, []string{"nethttp-server GET /status/503 /status/ 503 error 503"}},
	{"server", "alone GET /panic", 5, []string{"nethttp-server GET /panic /panic error panic"}},
	{"server", "GET /grow", 10, []string{"nethttp-server GET /grow /grow 200"}},
	{"server", "h2 GET /items/N", 20, []string{"nethttp-server GET /items/N /items/{id} 200"}},
	{"server", "h2 GET /status/404", 5, []string{"nethttp-server GET /status/404 /status/ 404"}},

	{"old", "GET /items/N", 20, []string{"nethttp-server GET /items/N 200"}},
	{"old", "h2 GET /items/N", 20, []string{"nethttp-server GET /items/N 200"}},
	{"old", "alone GET /panic", 5, []string{"nethttp-server GET /panic error panic"}},

	{"tree", "GET /plain/N", 10, []string{"nethttp-server GET /plain/N 200"}},
	{"tree", "GET /ctx/N", 20, tree("ctx", 1, true)},
	{"tree", "h2 GET /ctx/N", 20, tree("ctx", 1, true)},
	{"tree", "GET /limited/N", 10, tree("limited", 1, true)},
	{"tree", "GET /background/N", 10, tree("background", 1, true)},
	{"tree", "GET /derived/N", 10, tree("derived", 2, true)},
	{"tree", "h2 GET /group/N", 10, tree("group", 3, true)},
	{"tree", "GET /poolfree/N", 10, tree("poolfree", 1, false)},
	{"tree", "GET /go2/N", 10, tree("go2", 1, false)},

	{"client", "get http://{backend}/ok/N", 20, []string{"nethttp-client GET /ok/N 200"}},
	{"client", "h2 https://{backend2}/ok/N", 10, []string{"nethttp-client GET /ok/N 200"}},
	{"client", "post http://{backend}/ok/N", 5, []string{"nethttp-client POST /ok/N 200"}},
	{"client", "get http://{backend}/status/404", 5, []string{"nethttp-client GET /status/404 404 error 404"}},
	{"client", "get http://127.0.0.1:1/N", 5, []string{"nethttp-client GET /N error connection_refused"}},
	{"client", "timeout http://{backend}/hang/N", 3, []string{"nethttp-client GET /hang/N error timeout"}},
	{"client", "h2cancel https://{backend2}/hang/N", 3, []string{"nethttp-client GET /hang/N error cancelled"}},
}

// tree is what a request to the tree target gives: one call of its own and n to the
// backend, below it where that is certain, and otherwise below nothing.
func tree(way string, n int, parent bool) []string {
	server := "nethttp-server GET /" + way + "/N 200"
	client := "nethttp-client GET /" + way + "/N 200"
	if parent {
		client += " < " + server
	}
	calls := []string{server}
	for range n {
		calls = append(calls, client)
	}
	return calls
}
