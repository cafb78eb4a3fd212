// Package datapath tests what the switch does with packets, on labs: the same tests for the userspace datapath and the
// kernel's, which the environment variable WEFT_DATAPATH chooses. They need root and Open vSwitch:
//
//	go test -C test -tags integration ./datapath
//
// For a machine without Go, build a test binary (go test -c) and put weft-lab, weft-agent, weftctl and probe where
// WEFT_BIN says.
package datapath
