// Package version stands where Weft's own is, so that the same flags of the linker stamp it.
package version

var version = "unset"

// Get is what the linker set.
func Get() string { return version }
