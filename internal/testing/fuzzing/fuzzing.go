// Package fuzzing makes fuzz targets of properties that pgregory.net/rapid checks. It keeps nothing.
package fuzzing

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// Property fuzzes a property of rapid's, from random inputs of several lengths: a property reads its values from the
// input's bytes, and an input that is too short is none.
func Property(f *testing.F, property func(*rapid.T)) {
	for i := range byte(6) {
		seed := make([]byte, 256<<i)
		_, _ = rand.NewChaCha8([32]byte{i}).Read(seed) // never fails
		f.Add(seed)
	}
	f.Fuzz(rapid.MakeFuzz(property))
}
