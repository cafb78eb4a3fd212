package wire

import (
	"fmt"
	"net/netip"
)

// Attack is a set of forged packets, with the reasons for which a switch has to count each as dropped.
type Attack struct {
	Request SpoofRequest
	Labels  map[string]string // by tag
	Reasons map[string]uint64 // how many packets are sent that have to be dropped for a reason
}

// NewAttack sends each packet so often through eth0.
func NewAttack(count int) *Attack {
	return &Attack{Request: SpoofRequest{Iface: "eth0", Count: count}, Labels: map[string]string{},
		Reasons: map[string]uint64{}}
}

// mark makes a mark of its own for each kind of packet, so that a failure can name the packet that got through.
func (a *Attack) mark(label string) []byte {
	tag := fmt.Sprintf("%05d", len(a.Labels))
	a.Labels[tag] = label
	return Mark(tag)
}

// Frame adds an Ethernet frame.
func (a *Attack) Frame(reason, label string, build func(mark []byte) []byte) {
	a.Request.Frames = append(a.Request.Frames, LabelledFrame{Label: label, Data: build(a.mark(label))})
	a.Reasons[reason] += uint64(a.Request.Count)
}

// Datagram adds a datagram, which the sender's kernel sends.
func (a *Attack) Datagram(reason, label string, to netip.AddrPort, build func(mark []byte) []byte) {
	a.Request.Datagrams = append(a.Request.Datagrams, LabelledDatagram{Label: label, To: to, Data: build(a.mark(label))})
	a.Reasons[reason] += uint64(a.Request.Count)
}
