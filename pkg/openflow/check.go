package openflow

import (
	"fmt"
	"slices"
	"strings"
)

// maxTable is the last table; OpenFlow uses 255 for all tables.
const maxTable TableID = 254

var (
	protocolsIPv4  = []string{"ip", "icmp", "tcp", "udp", "sctp"}
	protocolsIPv6  = []string{"ipv6", "icmp6", "tcp6", "udp6", "sctp6"}
	protocolsIP    = slices.Concat(protocolsIPv4, protocolsIPv6)
	protocolsPorts = slices.Concat(protocolsIPv4[2:], protocolsIPv6[2:])
	protocolsARP   = []string{"arp", "rarp"}
	protocolsICMP  = []string{"icmp", "icmp6"}
)

// prerequisites lists the protocols of which a match needs one to have the field (ovs-fields(7)); nil when it needs
// none.
func prerequisites(field string) []string {
	switch field {
	case "nw_src", "nw_dst":
		return protocolsIPv4
	case "ipv6_src", "ipv6_dst":
		return protocolsIPv6
	case "nw_frag":
		return protocolsIP
	case "tp_src", "tp_dst":
		return protocolsPorts
	case "arp_op", "arp_spa", "arp_tpa", "arp_sha", "arp_tha":
		return protocolsARP
	case "icmp_type", "icmp_code":
		return protocolsICMP
	case "nd_target", "nd_sll", "nd_tll":
		return protocolsICMP[1:]
	}
	return nil
}

// checkMatch returns an error for a canonical match that the switch would take for another one: with a field twice it
// uses one of the two, and it ignores a field without its protocol, so that the flow matches more packets.
func checkMatch(fields []string) error {
	protocol, last := "", ""
	for _, field := range fields {
		if !strings.Contains(field, "=") {
			if protocol != "" {
				return fmt.Errorf("protocols %s and %s", protocol, field)
			}
			protocol = field
		}
	}
	for _, field := range fields {
		name, _, _ := strings.Cut(field, "=")
		if name == last {
			return fmt.Errorf("match field %s twice", name)
		}
		last = name
		if need := prerequisites(name); need != nil && !slices.Contains(need, protocol) {
			return fmt.Errorf("match field %s needs one of the protocols %v; the switch would ignore the field", name, need)
		}
	}
	return nil
}

// checkActions returns an error for actions that a flow of this table cannot have together, or that lead backwards.
func checkActions(table TableID, actions []Action) error {
	conjunctions := 0
	for i, action := range actions {
		switch {
		case action.text == drop && len(actions) > 1:
			return fmt.Errorf("action drop beside others")
		case strings.HasPrefix(action.text, clausePrefix):
			conjunctions++
		case strings.HasSuffix(action.text, "->ct_mark"), strings.HasSuffix(action.text, "->ct_label"):
			return fmt.Errorf("%s outside of ct: only CT.Exec can write it", action)
		}
		next, ok := action.Goto()
		switch {
		case !ok:
		case i < len(actions)-1:
			return fmt.Errorf("%s is not the last action", action)
		case next <= table || next > maxTable:
			return fmt.Errorf("%s: OpenFlow allows tables %d to %d only", action, table+1, maxTable)
		}
	}
	if conjunctions > 0 && conjunctions < len(actions) {
		return fmt.Errorf("action conjunction beside others")
	}
	return nil
}
