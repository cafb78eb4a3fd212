// Command hello stands for Weft's programs in the tests of the image builder.
package main

import (
	"fmt"

	"github.com/weft-cni/weft/internal/version"
)

func main() { fmt.Println(version.Get()) }
