module github.com/zerospan/zerospan/test/targets/tree

go 1.21
