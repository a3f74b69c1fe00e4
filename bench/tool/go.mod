module receiver/bench

go 1.21
