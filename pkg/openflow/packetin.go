package openflow

import (
	encodinghex "encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// Copy sends the beginning of the packet to listeners for packets, no more of them than a meter lets through. The
// packet itself goes on.
type Copy struct {
	// Bytes is how much of the packet is sent.
	Bytes uint16
	// Data comes with it.
	Data []byte
	// Meter must exist: where it does not, OVS 3.1 takes the flow and sends every packet.
	Meter MeterID
}

// Action is the copy as one action of a flow.
func (c Copy) Action() ovs.Action {
	if len(c.Data) == 0 || c.Bytes == 0 || c.Meter == 0 {
		return invalid{fmt.Errorf("a copy needs a length, data and a meter: %+v", c)}
	}
	data := make([]string, len(c.Data))
	for i, b := range c.Data {
		data[i] = fmt.Sprintf("%02x", b)
	}
	return Action{fmt.Sprintf(copyPrefix+"max_len=%d,userdata=%s"+copyMeter+"%d)", c.Bytes, strings.Join(data, "."), c.Meter)}
}

const (
	copyPrefix = "controller("
	copyMeter  = ",meter_id="
)

// ControllerID is the number by which a connection to the switch asks for packets.
type ControllerID uint16

// ToController sends the whole packet to the connections with a number, and to no others. Without one it is dropped.
func ToController(id ControllerID, data byte) ovs.Action {
	return Action{fmt.Sprintf(copyPrefix+"id=%d,userdata=%02x)", id, data)}
}

// MeterID is the number of a meter in a switch.
type MeterID uint32

// Meter lets through a number of packets a second, and counts the rest.
type Meter struct {
	ID MeterID
	// Rate is in packets a second; Burst is how many may come at once.
	Rate, Burst uint32
}

// String is the meter as ovs-ofctl takes it.
func (m Meter) String() string {
	return fmt.Sprintf("meter=%d,pktps,burst,stats,bands=type=drop,rate=%d,burst_size=%d", m.ID, m.Rate, m.Burst)
}

var (
	meterConfig = regexp.MustCompile(
		`(?m)^meter=(\d+) pktps burst stats bands=\s*\ntype=drop rate=(\d+) burst_size=(\d+)\s*$`)
	meterStats = regexp.MustCompile(`(?m)^meter:(\d+) .*\n0: packet_count:(\d+) `)
)

// ParseMeters reads what `ovs-ofctl -O OpenFlow15 dump-meters` prints. Meters of another kind than ours are left out.
func ParseMeters(text string) []Meter {
	var meters []Meter
	for _, m := range meterConfig.FindAllStringSubmatch(text, -1) {
		n := numbers(m[1:])
		meters = append(meters, Meter{ID: MeterID(n[0]), Rate: uint32(n[1]), Burst: uint32(n[2])})
	}
	return meters
}

// ParseMeterStats reads what `ovs-ofctl -O OpenFlow15 meter-stats` prints: how many packets each meter has held back.
func ParseMeterStats(text string) map[MeterID]uint64 {
	held := map[MeterID]uint64{}
	for _, m := range meterStats.FindAllStringSubmatch(text, -1) {
		n := numbers(m[1:])
		held[MeterID(n[0])] = n[1]
	}
	return held
}

// numbers reads what an expression has found to be digits.
func numbers(texts []string) []uint64 {
	values := make([]uint64, len(texts))
	for i, text := range texts {
		values[i], _ = strconv.ParseUint(text, 10, 64) // too many digits give the largest number
	}
	return values
}

// PacketIn is a packet that a flow has sent a copy of.
type PacketIn struct {
	Table  TableID
	Cookie uint64
	Data   []byte
	// Protocol is the word with which OVS begins the packet: tcp, udp6, icmp, …
	Protocol            string
	Source, Destination netip.Addr
	// SourcePort and DestinationPort are 0 where the protocol has none.
	SourcePort, DestinationPort uint16
}

// PacketInBegin is how the first line of a copy begins in the output of `ovs-ofctl monitor`; PacketInLines is how many
// lines it has.
const (
	PacketInBegin = "NXT_PACKET_IN2 "
	PacketInLines = 3
)

// ParsePacketIn reads the lines of a copy.
func ParsePacketIn(head, data, packet string) (PacketIn, error) {
	var p PacketIn
	fail := func(err error) error { return fmt.Errorf("read a packet's copy %q: %w", head, err) }
	for field := range strings.FieldsSeq(head) {
		name, value, _ := strings.Cut(field, "=")
		var err error
		switch name {
		case "table_id":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 8)
			p.Table = TableID(n)
		case "cookie":
			p.Cookie, err = strconv.ParseUint(value, 0, 64)
		}
		if err != nil {
			return PacketIn{}, fail(err)
		}
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(data), "userdata=")
	if !ok {
		return PacketIn{}, fail(fmt.Errorf("no userdata but %q", data))
	}
	var err error
	if p.Data, err = encodinghex.DecodeString(strings.ReplaceAll(text, ".", "")); err != nil {
		return PacketIn{}, fail(err)
	}
	if err := p.headers(packet); err != nil {
		return PacketIn{}, fail(err)
	}
	return p, nil
}

func (p *PacketIn) headers(packet string) error {
	for i, field := range strings.FieldsFunc(packet, func(r rune) bool { return r == ',' || r == ' ' }) {
		name, value, hasValue := strings.Cut(field, "=")
		var err error
		var port uint64
		switch {
		case i == 0 && !hasValue:
			p.Protocol = name
		case name == "nw_src" || name == "ipv6_src":
			p.Source, err = netip.ParseAddr(value)
		case name == "nw_dst" || name == "ipv6_dst":
			p.Destination, err = netip.ParseAddr(value)
		case name == "tp_src":
			port, err = strconv.ParseUint(value, 10, 16)
			p.SourcePort = uint16(port)
		case name == "tp_dst":
			port, err = strconv.ParseUint(value, 10, 16)
			p.DestinationPort = uint16(port)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if !p.Source.IsValid() || !p.Destination.IsValid() {
		return fmt.Errorf("packet %q has no IP addresses", packet)
	}
	return nil
}
