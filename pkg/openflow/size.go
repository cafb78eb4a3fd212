package openflow

import (
	"fmt"
	"strings"
)

// A group is one OpenFlow message, whose length is a number of 16 bits. Above that ovs-ofctl does not complain: it
// sends the length's lower 16 bits, and the switch refuses the message, or takes what is left for a shorter one. So the
// size is computed here. Measured with OVS 3.1: a group of 65,512 bytes is taken and read back, one of 65,536 is not;
// the bundle's own header takes 16 bytes more.
const maxGroupSize = 65512

// checkSize says whether a group fits into one message.
func checkSize(id GroupID, fields []Field, buckets []Actions) error {
	size := 24 + 40 // the message, the selection method
	for _, f := range fields {
		size += roundUp(4 + f.width/8)
	}
	for i, actions := range buckets {
		size += 16 // id, weight
		for a := range actions.All() {
			size += actionSize(a)
		}
		if size > maxGroupSize {
			return fmt.Errorf("group %d: %d buckets take more than the %d bytes that one OpenFlow message can have, %d of "+
				"them fit; make a group of groups", id, len(buckets), maxGroupSize, i)
		}
	}
	return nil
}

// actionSize is what an action in a bucket takes in a message, or a little more.
func actionSize(a Action) int {
	switch a.Name() {
	case drop:
		return 0
	case "group":
		return 8
	case "resubmit", "output", "IN_PORT", "conjunction":
		return 16
	case "move":
		return 24
	case "set_field":
		value, field, _ := a.Write()
		size := fieldBytes(field)
		if strings.Contains(value, "/") {
			size *= 2
		}
		return roundUp(8 + size)
	case "ct":
		size := 24
		for arg := range a.Args() {
			switch arg.Name() {
			case "nat":
				size += 24
				if strings.Count(arg.text, ":") > 1 {
					size += 16
				}
			case "exec":
				for inner := range arg.Args() {
					size += actionSize(inner)
				}
			}
		}
		return size
	case "learn":
		size := 32
		for spec := range a.Args() {
			size += 14
			if strings.Count(spec.text, ":") > 1 {
				size += 12 // an IPv6 address
			}
		}
		return roundUp(size)
	}
	return roundUp(64 + len(a.text))
}

// fieldBytes is the width of a field's value, or more.
func fieldBytes(name string) int {
	switch {
	case strings.HasPrefix(name, "reg"), name == "ct_mark", name == IPSrc.name, name == IPDst.name:
		return 4
	case strings.HasSuffix(name, "_src"), strings.HasSuffix(name, "_dst"):
		if strings.HasPrefix(name, "ipv6") {
			return 16
		}
		return 6
	}
	return 16
}

func roundUp(n int) int { return (n + 7) &^ 7 }
