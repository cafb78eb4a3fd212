package host

import (
	"encoding/binary"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// eventBuffer holds the events of a transaction with many elements, in bytes.
const eventBuffer = 4 << 20

// receive forwards the messages of an event socket until that is closed or fails.
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
	// Best effort: the kernel may limit the size. Events that do not fit end the subscription.
	_ = s.SetReceiveBufferSize(eventBuffer, true)
	return s, nil
}

// From linux/netconf.h and linux/fib_rules.h.
const (
	netconfHeader = 4 // one byte, padded
	netconfIndex  = 1 // NETCONFA_IFINDEX
	netconfAll    = -1
)

// settingRelevant reports whether an event is about sysctls of all links or of the gateway interface, or about one of
// Weft's routing rules.
func settingRelevant(m syscall.NetlinkMessage, gateway int) bool {
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
		if len(m.Data) < unix.SizeofRtMsg { // fib_rule_hdr has the same size
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
