package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// This file reads from the kernel (linux/netfilter/nf_tables.h) the state of nftables that the nft program does not
// print, or prints too late.

// nftMessage is an nftables message without its header.
type nftMessage struct {
	kind   uint16 // NFT_MSG_...
	family uint8
	body   []byte
}

func parseNFTMessage(kind uint16, data []byte) (nftMessage, bool) {
	if kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(data) < nl.SizeofNfgenmsg {
		return nftMessage{}, false
	}
	return nftMessage{kind: kind & 0xff, family: data[0], body: data[nl.SizeofNfgenmsg:]}, true
}

// attribute is the value of an attribute; nil without one.
func (m nftMessage) attribute(kind uint16) []byte {
	for k, value := range attributes(m.body) {
		if k == kind {
			return value
		}
	}
	return nil
}

func (m nftMessage) text(kind uint16) string {
	return strings.TrimRight(string(m.attribute(kind)), "\x00")
}

func (m nftMessage) number(kind uint16) (n uint64) {
	for _, b := range m.attribute(kind) { // big endian
		n = n<<8 | uint64(b)
	}
	return n
}

// tableOf is the name of the message's table: the first attribute of all messages except those about generations.
func (m nftMessage) tableOf() string {
	if m.kind == unix.NFT_MSG_NEWGEN {
		return ""
	}
	return m.text(unix.NFTA_TABLE_NAME)
}

// queryNFT calls f with each reply to a request for one kind of object.
func queryNFT(question, answer uint16, family uint8, flags int, f func(nftMessage)) error {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|int(question), flags)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	kind := unix.NFNL_SUBSYS_NFTABLES<<8 | answer
	err := request.ExecuteIter(unix.NETLINK_NETFILTER, kind, func(data []byte) bool {
		if m, ok := parseNFTMessage(kind, data); ok {
			f(m)
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("query the kernel's nftables: %w", err)
	}
	return nil
}

// generation is the number of the last nftables transaction of any program.
func generation() (id uint32, err error) {
	err = queryNFT(unix.NFT_MSG_GETGEN, unix.NFT_MSG_NEWGEN, unix.AF_UNSPEC, 0, func(m nftMessage) {
		id = uint32(m.number(unix.NFTA_GEN_ID)) //nolint:gosec // the attribute has four bytes
	})
	return id, err
}

// generations identifies Weft's own transactions. The zero value has none.
type generations struct {
	mu   sync.Mutex // held during a transaction
	last [32]uint32 // Weft's last ones, and 0
	next int
}

// run runs a transaction and returns its error.
func (g *generations) run(transaction func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	before, beforeErr := generation()
	err := transaction()
	after, afterErr := generation()
	if beforeErr == nil && afterErr == nil && after == before+1 { // otherwise the number may be another program's
		g.last[g.next] = after
		g.next = (g.next + 1) % len(g.last)
	}
	return err
}

// ours reports whether a transaction was one of Weft's last. It waits for a running one.
func (g *generations) ours(id uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return id != 0 && slices.Contains(g.last[:], id)
}

// layout is the kernel's form of Weft's table without the elements of its sets. nft prints the rules in another form
// than they were written, so a rule that was replaced under the same comment looks unchanged there.
type layout struct {
	// disabled: the table's rules have no effect because the table is dormant, or a chain drops by policy.
	disabled bool
	// sum is a hash of chains, sets and rules.
	sum string
	// written is the sum that the last writer stored in the table, as the name of an empty chain; empty without one.
	written string
}

// writtenPrefix begins the name of the chain that stores the sum.
const writtenPrefix = "written-"

// tableLayout reads the layout of Weft's table.
func tableLayout() (layout, error) {
	var l layout
	parts := map[string]hash.Hash64{} // by chain, because nft and the kernel list chains in any order
	collect := func(question, answer, name uint16, kinds []uint16, also func(nftMessage)) error {
		return queryNFT(question, answer, unix.NFPROTO_INET, unix.NLM_F_DUMP, func(m nftMessage) {
			if m.family != unix.NFPROTO_INET || m.tableOf() != tableName {
				return
			}
			key := fmt.Sprintf("%d %s", answer, m.text(name))
			part := parts[key]
			if part == nil {
				part = fnv.New64a()
				parts[key] = part
			}
			for _, kind := range kinds {
				value := m.attribute(kind)
				if kind == unix.NFTA_RULE_EXPRESSIONS && answer == unix.NFT_MSG_NEWRULE {
					value = withoutCounters(value)
				}
				_, _ = fmt.Fprintf(part, "%d %d ", kind, len(value)) // a hash never fails
				_, _ = part.Write(value)
			}
			also(m)
		})
	}
	chainParts := []uint16{unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_TYPE}
	setParts := []uint16{unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE, unix.NFTA_SET_DATA_TYPE}
	ruleParts, nothing := []uint16{unix.NFTA_RULE_EXPRESSIONS}, func(nftMessage) {}
	err := errors.Join(
		collect(unix.NFT_MSG_GETTABLE, unix.NFT_MSG_NEWTABLE, unix.NFTA_TABLE_NAME, nil, func(m nftMessage) {
			if m.number(unix.NFTA_TABLE_FLAGS)&nftTableDormant != 0 {
				l.disabled = true
			}
		}),
		collect(unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN, unix.NFTA_CHAIN_NAME, chainParts, func(m nftMessage) {
			if m.attribute(unix.NFTA_CHAIN_POLICY) != nil && m.number(unix.NFTA_CHAIN_POLICY) == nfDrop {
				l.disabled = true
			}
		}),
		collect(unix.NFT_MSG_GETSET, unix.NFT_MSG_NEWSET, unix.NFTA_SET_NAME, setParts, nothing),
		collect(unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE, unix.NFTA_RULE_CHAIN, ruleParts, nothing),
	)
	sum := fnv.New64a()
	for _, key := range slices.Sorted(maps.Keys(parts)) {
		if _, note, ok := strings.Cut(key, " "+writtenPrefix); ok {
			l.written = note
			continue
		}
		_, _ = fmt.Fprintf(sum, "%s %x\n", key, parts[key].Sum64())
	}
	l.sum = fmt.Sprintf("%016x", sum.Sum64())
	return l, err
}

// withoutCounters are the expressions of a rule without the values of its counters.
func withoutCounters(expressions []byte) []byte {
	list := slices.Clone(expressions)
	for _, e := range attributes(list) {
		var counter bool
		for kind, value := range attributes(e) {
			switch kind {
			case unix.NFTA_EXPR_NAME:
				counter = string(value) == "counter\x00"
			case unix.NFTA_EXPR_DATA:
				if counter {
					clear(value)
				}
			}
		}
	}
	return list
}

const (
	nftTableDormant = 1 // NFT_TABLE_F_DORMANT
	nfDrop          = 0 // NF_DROP
	nftablesGroup   = 7 // NFNLGRP_NFTABLES
)

// tableEvents finds the transactions of other programs that change Weft's table.
type tableEvents struct {
	ours    *generations
	changed bool
}

// add processes a message. It returns true at the end of such a transaction.
func (e *tableEvents) add(m syscall.NetlinkMessage) bool {
	n, ok := parseNFTMessage(m.Header.Type, m.Data)
	if !ok {
		return false
	}
	if n.kind != unix.NFT_MSG_NEWGEN {
		e.changed = e.changed || n.family == unix.NFPROTO_INET && n.tableOf() == tableName
		return false
	}
	id := binary.BigEndian.Uint32(append(n.attribute(unix.NFTA_GEN_ID), 0, 0, 0, 0))
	foreign := e.changed && !e.ours.ours(id)
	e.changed = false
	return foreign
}
