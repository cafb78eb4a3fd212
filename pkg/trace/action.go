package trace

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/openflow"
)

// action is a parsed action. A goto only names the table in which the packet continues after the other actions.
type action interface {
	do(r *run, p *Packet)
}

type (
	setAction struct {
		to          bitRange
		value, mask value
	}
	moveAction     struct{ from, to bitRange }
	gotoAction     struct{ table openflow.TableID }
	resubmitAction struct{ table openflow.TableID }
	outputAction   struct{ port uint32 }
	outputField    struct{ from bitRange }
	inPortAction   struct{}
	groupAction    struct{ id openflow.GroupID }
	ttlAction      struct{}
	ctClearAction  struct{}
	// noteAction is an action without effect on the packet: controller, sample, note, meter.
	noteAction struct{ text string }
	ctAction   struct {
		commit   bool
		table    openflow.TableID
		hasTable bool
		zone     uint16
		zoneFrom bitRange
		nat      translation
		exec     []action
	}
)

// parseActions parses actions. Conjunction clauses are returned separately.
func parseActions(list openflow.Actions) (actions []action, clauses []clause, err error) {
	for one := range list.All() {
		if id, k, n, ok := one.Clause(); ok {
			clauses = append(clauses, clause{id, k, n})
			continue
		}
		a, err := parseAction(one)
		if err != nil {
			return nil, nil, fmt.Errorf("action %s: %w", one, err)
		}
		actions = append(actions, a)
	}
	if clauses != nil && actions != nil {
		return nil, nil, fmt.Errorf("actions %s: a flow with conjunctions has no other actions", list)
	}
	return actions, clauses, nil
}

func parseAction(a openflow.Action) (action, error) {
	switch operand := a.Operand(); a.Name() {
	case "IN_PORT", "in_port":
		return inPortAction{}, nil
	case "dec_ttl":
		return ttlAction{}, nil
	case "ct_clear":
		return ctClearAction{}, nil
	case "set_field", "load":
		return parseSet(a)
	case "move":
		return parseMove(a)
	case "goto_table":
		next, ok := a.Goto()
		if !ok {
			return nil, fmt.Errorf("invalid table")
		}
		return gotoAction{next}, nil
	case "resubmit":
		next, ok := a.Next()
		if !ok {
			return nil, fmt.Errorf("only resubmit(,TABLE) is supported")
		}
		return resubmitAction{next}, nil
	case "output":
		if n, err := strconv.ParseUint(operand, 10, 32); err == nil {
			return outputAction{uint32(n)}, nil
		}
		from, err := parseBits(operand)
		return outputField{from}, err
	case "group":
		n, err := strconv.ParseUint(operand, 10, 32)
		return groupAction{openflow.GroupID(n)}, err
	case "ct":
		return parseCT(a)
	case "learn":
		return parseLearn(a)
	case "controller", "CONTROLLER", "sample", "note", "meter":
		return noteAction{a.String()}, nil
	}
	return nil, fmt.Errorf("unsupported action")
}

func parseSet(a openflow.Action) (action, error) {
	value, field, ok := a.Write()
	if !ok {
		return nil, fmt.Errorf("want VALUE->FIELD")
	}
	to, err := parseBits(field)
	if err != nil {
		return nil, err
	}
	v, mask, err := to.parseValue(value)
	return setAction{to, v, mask}, err
}

func parseMove(a openflow.Action) (action, error) {
	fromText, toText, ok := a.Write()
	if !ok {
		return nil, fmt.Errorf("want FROM->TO")
	}
	from, err := parseBits(fromText)
	if err != nil {
		return nil, err
	}
	to, err := parseBits(toText)
	if err == nil && from.bits != to.bits {
		err = fmt.Errorf("cannot move %d bits into %d", from.bits, to.bits)
	}
	return moveAction{from, to}, err
}

func parseCT(from openflow.Action) (action, error) {
	var a ctAction
	for arg := range from.Args() {
		var err error
		switch arg.Name() {
		case "commit":
			a.commit = true
		case "table":
			var n uint64
			n, err = strconv.ParseUint(arg.Operand(), 10, 8)
			a.table, a.hasTable = openflow.TableID(n), true
		case "zone":
			var n uint64
			if n, err = strconv.ParseUint(arg.Operand(), 0, 16); err != nil {
				a.zoneFrom, err = parseBits(arg.Operand())
			}
			a.zone = uint16(n)
		case "nat":
			a.nat, err = parseNAT(arg)
		case "exec":
			var clauses []clause
			a.exec, clauses, err = parseActions(openflow.ParseActions(arg.Operand()))
			if err == nil && clauses != nil {
				err = fmt.Errorf("conjunctions are not allowed here")
			}
		default:
			err = fmt.Errorf("unsupported argument")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", arg, err)
		}
	}
	if a.nat.on && !a.hasTable {
		return nil, fmt.Errorf("nat needs a table: without recirculation the switch does not see the new addresses")
	}
	return a, nil
}

func parseNAT(from openflow.Action) (translation, error) {
	t := translation{on: true}
	for arg := range from.Args() {
		if arg.String() == "src" {
			t.keepSource = true
			continue
		}
		rest, lastText, isRange := strings.Cut(arg.Operand(), "-")
		addr, err := netip.ParseAddr(rest)
		port := uint16(0)
		if err != nil {
			var both netip.AddrPort
			both, err = netip.ParseAddrPort(rest)
			addr, port = both.Addr(), both.Port()
		}
		if err != nil {
			return t, fmt.Errorf("%s: want one address, or one with a port: %w", arg, err)
		}
		last := uint64(port)
		if isRange {
			if last, err = strconv.ParseUint(lastText, 10, 16); err != nil || last < uint64(port) {
				return t, fmt.Errorf("%s: want FIRST-LAST", arg)
			}
		}
		switch {
		case arg.Name() == "src":
			t.src, t.srcPort, t.lastSrcPort = addr, port, uint16(last)
		case arg.Name() == "dst" && !isRange:
			t.dst, t.port = addr, port
		default:
			return t, fmt.Errorf("%s: unsupported argument", arg)
		}
	}
	return t, nil
}
