package state

import "fmt"

// Datapath is where the nodes' Open vSwitch forwards, in the words of Weft's setting. What a machine has to look like for
// each is said here and nowhere else.
type Datapath string

// The datapaths: the kernel's, and userspace.
const (
	System Datapath = "system"
	Netdev Datapath = "netdev"
)

const (
	// NIC is a node's network card on the underlay.
	NIC = "eth0"
	// PhysicalBridge is the bridge that has taken over the NIC, with the node's addresses.
	PhysicalBridge = "br-phy"
)

// ParseDatapath checks a datapath that a person typed.
func ParseDatapath(text string) (Datapath, error) {
	switch d := Datapath(text); d {
	case System, Netdev:
		return d, nil
	}
	return "", fmt.Errorf("datapath %q: want %s or %s", text, System, Netdev)
}

// Bridged says that the NIC has to be in a bridge: in userspace Open vSwitch does the tunnelling itself, and has to see what
// the tunnels travel over.
func (d Datapath) Bridged() bool { return d == Netdev }

// Uplink is the link that holds the node's addresses.
func (d Datapath) Uplink() string {
	if d.Bridged() {
		return PhysicalBridge
	}
	return NIC
}

// Offloads says that the NIC may leave checksums and segmentation to whoever receives: a kernel can make up for both, but
// userspace forwards packets as it reads them.
func (d Datapath) Offloads() bool { return d == System }
