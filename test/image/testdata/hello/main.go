// Command hello stands for Weft's programs in the tests of the image builder.
package main

import "fmt"

var version = "unset"

func main() { fmt.Println(version) }
