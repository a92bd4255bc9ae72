module github.com/zerospan/zerospan/test/targets/client

go 1.18
