package host

import (
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// What the host network does for packets in IPIP: the devices (model.IPIPDevice), and the rules that check who sends.

// outerHops is the hop limit of outer headers: a packet's own would end it on the way.
const outerHops = 64

// ipipEnds are the outer addresses of a device. Remote is invalid where a route's next hop is the outer destination.
type ipipEnds struct{ local, remote netip.Addr }

// ipipDevices are the desired devices, by name. Which there are follows from the addresses that peers send to, and from
// the families of this node's pods.
func (d Desired) ipipDevices() map[string]ipipEnds {
	devices := map[string]ipipEnds{}
	if !d.IPIP {
		return devices
	}
	add := func(local, remote netip.Addr) {
		for _, cidr := range d.PodCIDRs {
			name, ends := model.IPIPDevice(remote, cidr.Addr().Is4()), ipipEnds{local, remote}
			if remote.Is4() {
				ends.remote = netip.Addr{}
			}
			if _, taken := devices[name]; !taken { // of two peers with one name, the second is unreachable
				devices[name] = ends
			}
		}
	}
	if d.Address.Is4() { // without a peer node, too: that tells whether the kernel has them
		add(d.Address, d.Address)
	}
	for _, path := range d.Peers {
		if path.ReceivesIPIP {
			add(path.Local, path.NextHop)
		}
	}
	return devices
}

// syncIPIP makes, replaces or deletes the devices, and returns their indexes by name. After an error it goes on with
// the other devices.
func (h *Host) syncIPIP(c *changes, d Desired) (map[string]int, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	found, desired := map[string]int{}, d.ipipDevices()
	var errs []error
	for _, link := range links {
		name := link.Attrs().Name
		if !model.IsIPIPDevice(name) {
			continue
		}
		if ends, wanted := desired[name]; wanted && endsOf(link) == ends {
			found[name] = link.Attrs().Index
			errs = append(errs, h.looseReversePath(c, name), linkUp(c, link, d.MTU))
			continue
		}
		if err := netlink.LinkDel(link); err != nil {
			errs = append(errs, fmt.Errorf("delete IPIP device %s: %w", name, err))
			continue
		}
		c.add("%s: deleted", name)
	}
	for _, name := range slices.Sorted(maps.Keys(desired)) {
		if _, exists := found[name]; exists {
			continue
		}
		link, err := addIPIP(name, desired[name])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.add("%s: added with address %s", name, desired[name].local)
		found[name] = link.Attrs().Index
		errs = append(errs, h.looseReversePath(c, name), linkUp(c, link, d.MTU))
	}
	return found, errors.Join(errs...)
}

// endsOf are the addresses of a device like those of ipipDevice; invalid for others.
func endsOf(link netlink.Link) ipipEnds {
	var local, remote net.IP
	switch l := link.(type) {
	case *netlink.Iptun:
		local, remote = l.Local, l.Remote
	case *netlink.Sittun:
		local, remote = l.Local, l.Remote
	case *netlink.Ip6tnl:
		local, remote = l.Local, l.Remote
	}
	valid := func(ip net.IP) netip.Addr {
		if a, _ := netip.AddrFromSlice(ip); !a.IsUnspecified() {
			return a.Unmap()
		}
		return netip.Addr{}
	}
	return ipipEnds{valid(local), valid(remote)}
}

// ipipDevice is a device of the kernel.
func ipipDevice(name string, ends ipipEnds) netlink.Link {
	const findPathMTU = 1
	attrs, local := netlink.LinkAttrs{Name: name}, net.IP(ends.local.AsSlice())
	switch name {
	case model.IPIPName:
		return &netlink.Iptun{LinkAttrs: attrs, Local: local, Ttl: outerHops, PMtuDisc: findPathMTU}
	case model.SITName:
		return &netlink.Sittun{LinkAttrs: attrs, Local: local, Ttl: outerHops, PMtuDisc: findPathMTU,
			Proto: unix.IPPROTO_IPV6}
	}
	// Protocol 0 is any. Without the flag the kernel puts an option before each packet (RFC 2473, section 4.1.1).
	const ignoreEncapLimit = 1
	return &netlink.Ip6tnl{LinkAttrs: attrs, Local: local, Remote: ends.remote.AsSlice(), Ttl: outerHops,
		Flags: ignoreEncapLimit}
}

func addIPIP(name string, ends ipipEnds) (netlink.Link, error) {
	device := ipipDevice(name, ends)
	err := netlink.LinkAdd(device)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("this node's kernel has no IPIP device of the type %s: install the kernel's package with the modules "+
			"%s, or set tunnelType: geneve", device.Type(), strings.Join(model.IPIPModules(), ", "))
	}
	if errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("add IPIP device %s: a device of another program has the same addresses (ip -d link show type %s)",
			name, device.Type())
	}
	if err != nil {
		return nil, fmt.Errorf("add IPIP device %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find IPIP device %s: %w", name, err)
	}
	return link, nil
}

// CheckIPIP returns an error when the kernel has no device of a kind. It makes each for a moment.
func CheckIPIP() error {
	local := netip.MustParseAddr("192.0.2.1") // for documentation: RFC 5737 and RFC 3849
	for name, ends := range map[string]ipipEnds{
		model.IPIPName: {local: local}, model.SITName: {local: local},
		model.IP6TnlPrefix: {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")},
	} {
		link, err := addIPIP(name, ends)
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(link); err != nil {
			return err
		}
	}
	return nil
}

// ipipRoute is a route to a peer node's pods.
type ipipRoute struct {
	cidr   netip.Prefix
	via    netip.Addr
	device string
}

// ipipRoutes are the routes to the peer nodes that packets go to in IPIP. A sit device finds the outer address at the
// end of the next hop (RFC 4213, section 3.1). A route whose device belongs to another peer has none.
func (d Desired) ipipRoutes() []ipipRoute {
	var list []ipipRoute
	devices := d.ipipDevices()
	for _, path := range d.Peers {
		if path.Routed != model.ModeIPIP {
			continue
		}
		for _, cidr := range path.PodCIDRs {
			r := ipipRoute{cidr, path.NextHop, model.IPIPDevice(path.NextHop, cidr.Addr().Is4())}
			switch {
			case r.device == model.SITName:
				outer := path.NextHop.As4()
				r.via = netip.AddrFrom16([16]byte{12: outer[0], outer[1], outer[2], outer[3]})
			case path.NextHop.Is6():
				r.via = netip.Addr{}
				if devices[r.device].remote != path.NextHop {
					r.device = ""
				}
			}
			list = append(list, r)
		}
	}
	return list
}

// innerSources are the pairs of a peer node's address and one of its pod CIDRs, by the families of both. Nodes send
// with the address that this node sends to.
func innerSources(inner4 bool) func(d Desired, outer4 bool) []element {
	return func(d Desired, outer4 bool) []element {
		var list []element
		for _, path := range d.Peers {
			if !path.ReceivesIPIP || path.NextHop.Is4() != outer4 {
				continue
			}
			for _, cidr := range path.PodCIDRs {
				if _, own := d.local(inner4); own && cidr.Addr().Is4() == inner4 {
					list = append(list, element{prefix: single(path.NextHop), inner: cidr.Addr()})
				}
			}
		}
		return list
	}
}

// The parts of a set's key that are the source address of the packet inside.
const (
	inner4Key = "inner4"
	inner6Key = "inner6"
)

// innerSource is the source address inside IPIP, as nft has fields without a name: the offset and the length in bits.
// The outer header has no options.
func innerSource(outer4, inner4 bool) string {
	offset, length := 40*8, 128
	if outer4 {
		offset = 20 * 8
	}
	if inner4 {
		offset, length = offset+12*8, 32
	} else {
		offset += 8 * 8
	}
	return fmt.Sprintf("@nh,%d,%d", offset, length)
}

// innerText is an inner source as nft lists it: a number, decimal up to 64 bits.
func innerText(a netip.Addr) string {
	n := new(big.Int).SetBytes(a.AsSlice())
	if n.IsUint64() {
		return strconv.FormatUint(n.Uint64(), 10)
	}
	return "0x" + n.Text(16)
}

// parseInner is the inverse of innerText.
func parseInner(text string, inner4 bool) (netip.Addr, bool) {
	n, ok := new(big.Int).SetString(text, 0)
	length := 16
	if inner4 {
		length = 4
	}
	if !ok || n.Sign() < 0 || n.BitLen() > 8*length {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(n.FillBytes(make([]byte, length)))
}

// addIPIPRules accepts IPIP of peer nodes that has a source of their own pods inside, before the kernel takes the outer
// header off, and keeps it out of conntrack. It drops IPIP of all others: a device takes packets from everyone. Then it
// accepts what came out of the devices for this node's pods.
func addIPIPRules(add func(chain, comment string, words ...any), d Desired, f family) {
	if !d.IPIP {
		return
	}
	protocols := []any{"meta l4proto {", uint16(model.InnerProtocol(true)), ",", uint16(model.InnerProtocol(false)), "}"}
	for _, inner := range families {
		local, ok := d.local(inner.is4)
		if !ok {
			continue
		}
		match := []any{"ip6 nexthdr", uint16(model.InnerProtocol(inner.is4))}
		if f.is4 {
			match = []any{"ip protocol", uint16(model.InnerProtocol(inner.is4)), "ip hdrlength 5"}
		}
		mask, _ := netip.AddrFromSlice(net.CIDRMask(local.Bits(), local.Addr().BitLen()))
		add(enteredChain, "IPIP of nodes, with their pods' "+inner.proto+": not tracked, not translated",
			slices.Concat([]any{"fib daddr type local"}, match, []any{f.header, "saddr .", "(" + innerSource(f.is4, inner.is4), "&",
				hexText(mask), ")", "@" + ipipSet(inner.is4) + "-" + f.suffix, "notrack accept"})...)
	}
	add(enteredChain, "forged: IPIP that is not from a node, or not from its pods",
		slices.Concat([]any{"meta nfproto", f.proto, "fib daddr type local"}, protocols, []any{"counter drop"})...)
	add(leavingChain, "IPIP to nodes: not tracked, not translated",
		slices.Concat([]any{f.header, "daddr", "@nodes-" + f.suffix}, protocols, []any{"notrack"})...)
	local, ok := d.local(f.is4)
	if !ok {
		return
	}
	over4 := model.IPIPName
	if !f.is4 {
		over4 = model.SITName
	}
	for _, device := range []string{over4, model.IP6TnlPrefix + "*"} {
		device = strconv.Quote(device)
		add(enteredChain, "IPIP: for this node's pods", "iifname", device, f.header, "daddr", local.String(), "accept")
		add(enteredChain, "IPIP: for others", "iifname", device, "meta nfproto", f.proto, "counter drop")
	}
}

// ipipSet is the set of innerSources, without the family of the outer header.
func ipipSet(inner4 bool) string {
	if inner4 {
		return "ipip4"
	}
	return "ipip6"
}

func hexText(a netip.Addr) string { return "0x" + new(big.Int).SetBytes(a.AsSlice()).Text(16) }
