package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// flushShare bounds the share of time that passes over the kernel's connections take: one in so many. A pass over
// 100,000 connections takes 0.8 s on a busy machine (BenchmarkFlush).
const flushShare = 10

// flushing is the state that Sync hands to FlushConnections.
type flushing struct {
	mu      sync.Mutex
	desired Desired
	removed removedTranslations
	due     bool // something has changed since the last pass

	// Used by FlushConnections only.
	local ranges // the node's local ranges at the last pass
	took  time.Duration
	ended time.Time
}

// tableWritten records the table that is in the kernel now, and the translations that it no longer makes.
func (f *flushing) tableWritten(d Desired, changed bool, removed removedTranslations) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.due = f.due || changed || !slices.Equal(d.ServiceCIDRs, f.desired.ServiceCIDRs)
	f.removed.add(removed)
	f.desired = d
}

// FlushConnections removes from the kernel's conntrack table the UDP connections, and others without a handshake, that
// lack a translation of the current nftables table or have one that the table no longer makes. NAT is decided by the
// first packet, and a sender may never pause long enough for the entry to expire. It returns the number of removed
// connections.
//
// It looks at all connections the first time, after a Sync that changed the table or the routes to Services, and after
// a change of the node's addresses; otherwise it does nothing. It may block for as long as several passes take. It is
// called from one goroutine, which need not be Sync's. After an error the next call looks again.
func (h *Host) FlushConnections(ctx context.Context) (int, error) {
	f := &h.flushing
	// Not the list of addresses: the kernel lists an IPv6 address before it accepts packets for it as local.
	local, err := localRanges()
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	due := f.due || !slices.Equal(local, f.local)
	f.mu.Unlock()
	if !due {
		return 0, nil
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(flushShare*f.took - time.Since(f.ended)):
	}

	f.mu.Lock()
	desired, removed := f.desired, f.removed
	f.due, f.removed = false, removedTranslations{}
	f.mu.Unlock()
	began := time.Now()
	n, err := flush(desired, local, removed)
	f.ended = time.Now()
	f.took = f.ended.Sub(began)
	if err != nil {
		f.mu.Lock()
		f.due = true
		removed.add(f.removed)
		f.removed = removed
		f.mu.Unlock()
		return n, fmt.Errorf("flush connections without their translation: %w", err)
	}
	f.local = local
	return n, nil
}

// localRanges are the destinations that nftables takes for the node's own (fib type local): its addresses, and
// everything else that is routed to it.
func localRanges() (ranges, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil {
		return nil, fmt.Errorf("list local routes: %w", err)
	}
	var local ranges
	for _, r := range routes {
		if r.Dst != nil {
			local = append(local, prefix(r.Dst))
		}
	}
	return disjoint(local), nil
}

// flush checks all of the kernel's connections and removes the outdated ones. It returns the number of removed
// connections.
func flush(d Desired, local ranges, removed removedTranslations) (int, error) {
	t := translationsOf(d, local, removed)
	var outdated [][]byte
	dump := conntrackRequest(unix.AF_UNSPEC, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	err := dump.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(entry []byte) bool {
		if c, ok := parseConnection(entry); ok && t.outdated(c) {
			outdated = append(outdated, slices.Clone(entry))
		}
		return true
	})
	if err != nil {
		return 0, fmt.Errorf("read the kernel's connections: %w", err)
	}
	n := 0
	var errs []error
	for _, entry := range outdated {
		// Send the entry back with all listed attributes, including its id: a newer connection with the same addresses
		// and ports must stay.
		remove := conntrackRequest(entry[0], nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
		remove.AddRawData(entry[nl.SizeofNfgenmsg:])
		_, err := remove.Execute(unix.NETLINK_NETFILTER, 0)
		switch {
		case err == nil:
			n++
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return n, errors.Join(errs...)
}

func conntrackRequest(family uint8, operation, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(netlink.ConntrackTable<<8|operation, flags)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return r
}

// parseConnection parses a message of ctnetlink (linux/netfilter/nfnetlink_conntrack.h); false unless it is a
// connection over IP.
func parseConnection(message []byte) (connection, bool) {
	var c connection
	if len(message) < nl.SizeofNfgenmsg {
		return c, false
	}
	for kind, value := range attributes(message[nl.SizeofNfgenmsg:]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			c.parseTuple(value, &c.source, &c.destination)
		case nl.CTA_TUPLE_REPLY:
			c.parseTuple(value, &c.replySource, &c.replyDestination)
		case nl.CTA_ZONE:
			c.zone = number(value)
		}
	}
	return c, c.source.IsValid() && c.destination.IsValid() && c.replySource.IsValid() && c.replyDestination.IsValid()
}

// parseTuple parses one direction of a connection.
func (c *connection) parseTuple(tuple []byte, source, destination *netip.AddrPort) {
	var from, to netip.Addr
	var fromPort, toPort uint16
	for kind, value := range attributes(tuple) {
		switch kind {
		case nl.CTA_TUPLE_IP:
			for kind, value := range attributes(value) {
				a, _ := netip.AddrFromSlice(value)
				switch kind {
				case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
					from = a
				case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
					to = a
				}
			}
		case nl.CTA_TUPLE_PROTO:
			for kind, value := range attributes(value) {
				switch {
				case kind == nl.CTA_PROTO_NUM && len(value) > 0:
					c.protocol = value[0]
				case kind == nl.CTA_PROTO_SRC_PORT:
					fromPort = number(value)
				case kind == nl.CTA_PROTO_DST_PORT:
					toPort = number(value)
				}
			}
		case tupleZone:
			c.zone = number(value)
		}
	}
	*source, *destination = netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort)
}

// tupleZone is CTA_TUPLE_ZONE: a zone may belong to one direction only.
const tupleZone = 3

func number(value []byte) uint16 {
	if len(value) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(value)
}

// attributes iterates over netlink attributes without copying them, and stops at a truncated one.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
		}
	}
}
