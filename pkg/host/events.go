package host

import (
	"encoding/binary"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// eventBuffer holds the events of a transaction of many elements.
const eventBuffer = 4 << 20

// receive hands on what a socket for events receives until that is closed or fails.
func receive(s *nl.NetlinkSocket, out chan<- syscall.NetlinkMessage, fail func(error)) {
	defer close(out)
	for {
		messages, _, err := s.Receive()
		if err != nil {
			fail(err)
			return
		}
		for _, m := range messages {
			out <- m
		}
	}
}

// subscribeTo opens a socket for groups of events.
func subscribeTo(protocol int, groups ...uint) (*nl.NetlinkSocket, error) {
	s, err := nl.Subscribe(protocol, groups...)
	if err != nil {
		return nil, err
	}
	// The kernel grants what it likes; events that do not fit end the subscription.
	_ = s.SetReceiveBufferSize(eventBuffer, true)
	return s, nil
}

// Of linux/netconf.h and linux/fib_rules.h.
const (
	netconfHeader = 4 // a byte, and the alignment of what follows
	netconfIndex  = 1 // NETCONFA_IFINDEX
	netconfAll    = -1
)

// settingConcerns says whether an event is about settings that hold for all links or for the gateway's, or about a rule
// for routing that is ours.
func settingConcerns(m syscall.NetlinkMessage, gateway int) bool {
	switch m.Header.Type {
	case unix.RTM_NEWNETCONF:
		if len(m.Data) < netconfHeader {
			return false
		}
		for kind, value := range attributes(m.Data[netconfHeader:]) {
			if kind == netconfIndex && len(value) == 4 {
				index := int(int32(binary.NativeEndian.Uint32(value))) //nolint:gosec // it is one
				return index == netconfAll || index == gateway
			}
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		if len(m.Data) < unix.SizeofRtMsg { // of the size of fib_rule_hdr
			return false
		}
		for kind, value := range attributes(m.Data[unix.SizeofRtMsg:]) {
			if kind == unix.FRA_PROTOCOL && len(value) == 1 {
				return value[0] == byte(RouteProtocol)
			}
		}
	}
	return false
}
