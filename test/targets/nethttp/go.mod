module github.com/zerospan/zerospan/test/targets/nethttp

go 1.18
