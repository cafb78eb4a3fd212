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

// parseActions parses canonical actions. Conjunction clauses are returned separately.
func parseActions(text string) (actions []action, clauses []clause, err error) {
	if text == "drop" || text == "" {
		return nil, nil, nil
	}
	for _, one := range openflow.SplitActions(text) {
		if args, ok := strings.CutPrefix(one, "conjunction("); ok {
			c, err := parseClause(strings.TrimSuffix(args, ")"))
			if err != nil {
				return nil, nil, fmt.Errorf("action %s: %w", one, err)
			}
			clauses = append(clauses, c)
			continue
		}
		a, err := parseAction(one)
		if err != nil {
			return nil, nil, fmt.Errorf("action %s: %w", one, err)
		}
		actions = append(actions, a)
	}
	if clauses != nil && actions != nil {
		return nil, nil, fmt.Errorf("actions %s: a flow with conjunctions has no other actions", text)
	}
	return actions, clauses, nil
}

func parseClause(args string) (c clause, err error) {
	var id, k, n uint64
	idText, rest, ok := strings.Cut(args, ",")
	kText, nText, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return c, fmt.Errorf("want ID,K/N")
	}
	if id, err = strconv.ParseUint(strings.TrimSpace(idText), 0, 32); err != nil {
		return c, err
	}
	if k, err = strconv.ParseUint(strings.TrimSpace(kText), 10, 8); err != nil {
		return c, err
	}
	if n, err = strconv.ParseUint(strings.TrimSpace(nText), 10, 8); err != nil {
		return c, err
	}
	if k < 1 || k > n || n < 2 || n > 64 {
		return c, fmt.Errorf("invalid clause")
	}
	return clause{uint32(id), uint8(k), uint8(n)}, nil
}

func parseAction(text string) (action, error) {
	end := strings.IndexAny(text, ":(")
	if end < 0 {
		switch text {
		case "IN_PORT", "in_port":
			return inPortAction{}, nil
		case "dec_ttl":
			return ttlAction{}, nil
		case "ct_clear":
			return ctClearAction{}, nil
		case "ct":
			return ctAction{}, nil
		}
		return nil, fmt.Errorf("unsupported action")
	}
	name, args := text[:end], strings.TrimSuffix(text[end+1:], ")")
	switch name {
	case "set_field", "load":
		return parseSet(args)
	case "move":
		return parseMove(args)
	case "goto_table":
		n, err := strconv.ParseUint(args, 10, 8)
		return gotoAction{openflow.TableID(n)}, err
	case "resubmit":
		port, table, ok := strings.Cut(args, ",")
		if !ok || port != "" {
			return nil, fmt.Errorf("only resubmit(,TABLE) is supported")
		}
		n, err := strconv.ParseUint(table, 10, 8)
		return resubmitAction{openflow.TableID(n)}, err
	case "output":
		if n, err := strconv.ParseUint(args, 10, 32); err == nil {
			return outputAction{uint32(n)}, nil
		}
		from, err := parseBits(args)
		return outputField{from}, err
	case "group":
		n, err := strconv.ParseUint(args, 10, 32)
		return groupAction{openflow.GroupID(n)}, err
	case "ct":
		return parseCT(args)
	case "learn":
		return parseLearn(args)
	case "controller", "CONTROLLER", "sample", "note", "meter":
		return noteAction{text}, nil
	}
	return nil, fmt.Errorf("unsupported action")
}

func parseSet(args string) (action, error) {
	at := strings.LastIndex(args, "->")
	if at < 0 {
		return nil, fmt.Errorf("want VALUE->FIELD")
	}
	to, err := parseBits(args[at+2:])
	if err != nil {
		return nil, err
	}
	v, mask, err := to.parseValue(args[:at])
	return setAction{to, v, mask}, err
}

func parseMove(args string) (action, error) {
	fromText, toText, ok := strings.Cut(args, "->")
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

func parseCT(args string) (action, error) {
	var a ctAction
	if args == "" {
		return a, nil
	}
	for _, arg := range openflow.SplitActions(args) {
		end := strings.IndexAny(arg, "=(")
		name, rest := arg, ""
		if end >= 0 {
			name, rest = arg[:end], arg[end+1:]
		}
		var err error
		switch name {
		case "commit":
			a.commit = true
		case "table":
			var n uint64
			n, err = strconv.ParseUint(rest, 10, 8)
			a.table, a.hasTable = openflow.TableID(n), true
		case "zone":
			var n uint64
			if n, err = strconv.ParseUint(rest, 0, 16); err != nil {
				a.zoneFrom, err = parseBits(rest)
			}
			a.zone = uint16(n)
		case "nat":
			a.nat, err = parseNAT(strings.TrimSuffix(rest, ")"))
		case "exec":
			var clauses []clause
			a.exec, clauses, err = parseActions(strings.TrimSuffix(rest, ")"))
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

func parseNAT(args string) (translation, error) {
	t := translation{on: true}
	if args == "" {
		return t, nil
	}
	for _, arg := range strings.Split(args, ",") {
		if arg == "src" {
			t.keepSource = true
			continue
		}
		name, rest, _ := strings.Cut(arg, "=")
		rest, lastText, isRange := strings.Cut(rest, "-")
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
		case name == "src":
			t.src, t.srcPort, t.lastSrcPort = addr, port, uint16(last)
		case name == "dst" && !isRange:
			t.dst, t.port = addr, port
		default:
			return t, fmt.Errorf("%s: unsupported argument", arg)
		}
	}
	return t, nil
}
