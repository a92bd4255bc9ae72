module github.com/zerospan/zerospan/test/targets/exec

go 1.21
