module github.com/zerospan/zerospan/test/targets/xnet

go 1.18
