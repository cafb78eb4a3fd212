//go:build race

package testenv

// raceFactor is how many times slower the race detector makes a program at most, in these tests.
const raceFactor = 4
