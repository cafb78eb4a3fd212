package openflow

import (
	"strconv"
	"strings"
)

// Names replace numbers in matches and actions that people read, as `ovs-ofctl --names` does.
type Names struct {
	// Table is a table's name.
	Table func(TableID) string
	// Ports are the names of ports; those that are missing keep their numbers. PortRegister is the register that holds
	// numbers of ports.
	Ports        map[uint32]string
	PortRegister Register
}

// Match is the match with names.
func (n Names) Match(m Match) string {
	const inPort = "in_port="
	at := strings.Index(m.text, inPort)
	if at < 0 {
		return m.text
	}
	digits, rest := m.text[at+len(inPort):], ""
	if end := strings.IndexByte(digits, ','); end >= 0 {
		digits, rest = digits[:end], digits[end:]
	}
	port, err := strconv.ParseUint(digits, 10, 32)
	if name := n.Ports[uint32(port)]; err == nil && name != "" {
		return m.text[:at+len(inPort)] + name + rest
	}
	return m.text
}

// Actions are the actions with names.
func (n Names) Actions(a Actions) string {
	if a.Drop() {
		return a.String()
	}
	var texts []string
	for action := range a.All() {
		text := action.text
		if table, ok := action.Next(); ok {
			number, name := strconv.Itoa(int(table)), n.Table(table)
			for _, form := range []string{gotoPrefix + "%", "resubmit(,%)", "table=%,", "table=%)"} {
				text = strings.ReplaceAll(text, strings.Replace(form, "%", number, 1), strings.Replace(form, "%", name, 1))
			}
		} else if port, ok := n.PortRegister.SetBy(action); ok && n.Ports[port] != "" {
			text = "set_field:" + n.Ports[port] + "->" + n.PortRegister.String()
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ",")
}
