module github.com/zerospan/zerospan/test/targets/bench

go 1.22
