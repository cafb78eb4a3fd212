// Package datapath tests what the switch does with packets, on labs: the same tests for the userspace datapath and the
// kernel's, which the environment variable WEFT_DATAPATH chooses. They need root and Open vSwitch:
//
//	go test -tags integration ./test/datapath
//
// For a machine without Go, build a test binary (go test -c) and put weftctl, weft-agent and probe where WEFT_BIN says.
package datapath
