module github.com/weft-cni/weft

go 1.26.0
