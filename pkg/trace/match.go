package trace

import (
	"fmt"
	"slices"

	"github.com/weft-cni/weft/pkg/openflow"
)

// cond is a condition on one field: the masked bits must equal value.
type cond struct {
	field       field
	value, mask value
}

type protocolMatch struct {
	ethType  uint64
	proto    uint64
	hasProto bool
}

// protocolWords are the matches without a value.
var protocolWords = map[string]protocolMatch{
	"ip": {ethType: typeIPv4}, "ipv6": {ethType: typeIPv6}, "arp": {ethType: typeARP},
	"icmp": {typeIPv4, protoICMP, true}, "icmp6": {typeIPv6, protoICMPv6, true},
	"tcp": {typeIPv4, protoTCP, true}, "tcp6": {typeIPv6, protoTCP, true},
	"udp": {typeIPv4, protoUDP, true}, "udp6": {typeIPv6, protoUDP, true},
	"sctp": {typeIPv4, protoSCTP, true}, "sctp6": {typeIPv6, protoSCTP, true},
}

// parseMatch parses a match's values (ovs-fields(7)). The conditions are sorted by field, one for each.
func parseMatch(m openflow.Match) ([]cond, error) {
	var conds []cond
	add := func(n bitRange, v, mask value) {
		for _, s := range n.spans {
			m := mask.and(ones(s.n)).shiftLeft(s.lo)
			if !m.isZero() {
				conds = append(conds, cond{s.field, v.shiftLeft(s.lo).and(m), m})
			}
			v, mask = v.shiftRight(s.n), mask.shiftRight(s.n)
		}
	}
	for name, val := range m.Fields() {
		if word, ok := protocolWords[name]; ok {
			add(names["eth_type"], number(word.ethType), ones(16))
			if word.hasProto {
				add(names["nw_proto"], number(word.proto), ones(8))
			}
			continue
		}
		n, ok := names[name]
		if !ok {
			return nil, fmt.Errorf("unsupported field %q", name)
		}
		v, mask, err := n.parseValue(val)
		if err != nil {
			return nil, fmt.Errorf("%s=%s: %w", name, val, err)
		}
		add(n, v, mask)
	}
	slices.SortFunc(conds, func(a, b cond) int { return int(a.field) - int(b.field) })
	// xreg0 and reg1 may both set conditions on one register.
	merged := conds[:0]
	for _, c := range conds {
		if last := len(merged) - 1; last >= 0 && merged[last].field == c.field {
			merged[last].value, merged[last].mask = merged[last].value.or(c.value), merged[last].mask.or(c.mask)
			continue
		}
		merged = append(merged, c)
	}
	return merged, nil
}
