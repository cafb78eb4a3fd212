package host

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-cni/weft/pkg/model"
)

// What the host network does for packets that WireGuard encrypts: the device, with the peer nodes whose packets it
// accepts, and the rules for packets from and to it. WireGuard itself drops what a peer sends with an address of
// another one's pod CIDRs, so nothing else checks the sender.

// WireGuard is the desired device.
type WireGuard struct {
	PrivateKey wgtypes.Key
	Port       uint16
}

// keepalive makes WireGuard shake hands with a peer as soon as it is added, and again when its key has changed. It is
// sent when there was nothing else.
const keepalive = 25 * time.Second

// LoadWireGuardKey reads a node's private key. A missing file is made with a new key, for root alone.
func LoadWireGuardKey(file string) (wgtypes.Key, error) {
	text, err := os.ReadFile(file)
	if err == nil {
		key, err := wgtypes.ParseKey(string(bytes.TrimSpace(text)))
		if err != nil {
			return key, fmt.Errorf("private key of WireGuard: %s: %w; delete the file, so that the agent makes a new key", file, err)
		}
		return key, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return wgtypes.Key{}, fmt.Errorf("private key of WireGuard: %w", err)
	}
	key, err := wgtypes.GeneratePrivateKey()
	if err == nil {
		next := file + ".next"
		if err = os.WriteFile(next, []byte(key.String()+"\n"), 0o600); err == nil {
			err = os.Rename(next, file)
		}
	}
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key of WireGuard: %w", err)
	}
	return key, nil
}

// Handshakes returns the keys of the peers that the device has shaken hands with, sorted; none without a device.
func Handshakes() ([]model.WireGuardKey, error) {
	if _, err := netlink.LinkByName(model.WireGuardName); errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	client, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("read WireGuard device %s: %w", model.WireGuardName, err)
	}
	defer client.Close()
	device, err := client.Device(model.WireGuardName)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read WireGuard device %s: %w", model.WireGuardName, err)
	}
	var keys []model.WireGuardKey
	for _, p := range device.Peers {
		if !p.LastHandshakeTime.IsZero() {
			keys = append(keys, model.WireGuardKey(p.PublicKey))
		}
	}
	slices.SortFunc(keys, model.WireGuardKey.Compare)
	return keys, nil
}

// syncWireGuard makes, configures or deletes the device, and returns its index, 0 for none.
func (h *Host) syncWireGuard(c *changes, d Desired) (index int, err error) {
	const name = model.WireGuardName
	link, err := netlink.LinkByName(name)
	missing := errors.As(err, &netlink.LinkNotFoundError{})
	switch {
	case err != nil && !missing:
		return 0, fmt.Errorf("find WireGuard device %s: %w", name, err)
	case d.WireGuard == nil && missing:
		return 0, nil
	case d.WireGuard == nil:
		if err := netlink.LinkDel(link); err != nil {
			return 0, fmt.Errorf("delete WireGuard device %s: %w", name, err)
		}
		c.add("%s: deleted", name)
		return 0, nil
	case missing:
		if link, err = addWireGuard(); err != nil {
			return 0, err
		}
		c.add("%s: added", name)
	}
	if err := errors.Join(h.looseReversePath(c, name), h.configureWireGuard(c, d)); err != nil {
		return 0, err
	}
	return link.Attrs().Index, linkUp(c, link, d.MTU)
}

func addWireGuard() (netlink.Link, error) {
	const name = model.WireGuardName
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("this node's kernel has no WireGuard: install its package with the module wireguard, or a kernel " +
			"of 5.6 or newer, or set encryption: none")
	}
	if err != nil {
		return nil, fmt.Errorf("add WireGuard device %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find WireGuard device %s: %w", name, err)
	}
	return link, nil
}

// configureWireGuard writes the difference between the desired device and the kernel's.
func (h *Host) configureWireGuard(c *changes, d Desired) error {
	const name = model.WireGuardName
	client, err := wgctrl.New() // after the device, which makes the kernel load the module
	if err != nil {
		return fmt.Errorf("configure WireGuard device %s: %w", name, err)
	}
	defer client.Close()
	device, err := client.Device(name)
	if err != nil {
		return fmt.Errorf("read WireGuard device %s: %w", name, err)
	}
	var config wgtypes.Config
	changed := false
	if device.PrivateKey != d.WireGuard.PrivateKey {
		config.PrivateKey, changed = &d.WireGuard.PrivateKey, true
		c.add("%s: key %s", name, d.WireGuard.PrivateKey.PublicKey())
	}
	if port := int(d.WireGuard.Port); device.ListenPort != port {
		config.ListenPort, changed = &port, true
		c.add("%s: UDP port %d", name, port)
	}
	var endpoints map[wgtypes.Key]netip.AddrPort
	config.Peers, endpoints = h.peerChanges(c, device.Peers, d.Peers)
	if changed || len(config.Peers) > 0 {
		if err := client.ConfigureDevice(name, config); err != nil {
			return fmt.Errorf("configure WireGuard device %s: %w", name, err)
		}
	}
	h.endpoints = endpoints
	return nil
}

// peerChanges removes the peers that are not desired, and sets those that differ: removed ones first, so that their pod
// CIDRs are free. WireGuard follows a peer that sends from another address, so an endpoint that was written once stays
// as long as the desired one does.
func (h *Host) peerChanges(c *changes, have []wgtypes.Peer, paths []model.Path) (
	list []wgtypes.PeerConfig, endpoints map[wgtypes.Key]netip.AddrPort,
) {
	desired := map[wgtypes.Key]wgtypes.PeerConfig{}
	endpoints = map[wgtypes.Key]netip.AddrPort{}
	for _, path := range paths {
		if !path.WireGuard.Valid() {
			continue
		}
		interval := keepalive
		p := wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(path.WireGuard.Key), Endpoint: net.UDPAddrFromAddrPort(path.WireGuard.Endpoint),
			ReplaceAllowedIPs: true, PersistentKeepaliveInterval: &interval,
		}
		for _, cidr := range path.PodCIDRs { // the gateway's addresses are in them
			p.AllowedIPs = append(p.AllowedIPs, *ipNet(cidr))
		}
		desired[p.PublicKey], endpoints[p.PublicKey] = p, path.WireGuard.Endpoint
	}
	for _, p := range have {
		want, wanted := desired[p.PublicKey]
		switch {
		case !wanted:
			list = append(list, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true})
			c.add("%s: peer %s removed", model.WireGuardName, p.PublicKey)
		case (h.endpoints[p.PublicKey] == endpoints[p.PublicKey] || p.Endpoint.String() == want.Endpoint.String()) &&
			p.PersistentKeepaliveInterval == keepalive && sameRanges(p.AllowedIPs, want.AllowedIPs):
			delete(desired, p.PublicKey)
		}
	}
	keys := make([]wgtypes.Key, 0, len(desired))
	for key := range desired {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b wgtypes.Key) int { return bytes.Compare(a[:], b[:]) })
	for _, key := range keys {
		list = append(list, desired[key])
		c.add("%s: peer %s at %s for %v", model.WireGuardName, key, desired[key].Endpoint, ranges(sorted(desired[key].AllowedIPs)))
	}
	return list, endpoints
}

func sameRanges(a, b []net.IPNet) bool { return slices.Equal(sorted(a), sorted(b)) }

func sorted(list []net.IPNet) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(list))
	for i := range list {
		prefixes[i] = prefix(&list[i])
	}
	slices.SortFunc(prefixes, comparePrefixes)
	return prefixes
}

// encryptedPodCIDRs are those of peer nodes that the node's routes lead to the device.
func (d Desired) encryptedPodCIDRs() []netip.Prefix {
	var list []netip.Prefix
	for _, path := range d.Peers {
		if path.Routed == model.ModeWireGuard {
			list = append(list, path.PodCIDRs...)
		}
	}
	return list
}

// addWireGuardRules keeps the device's own packets out of conntrack and of Services, as a tunnel's, and accepts what it
// has decrypted for this node's pods. With Strict, nothing goes to other nodes' pods but by the device; that nothing
// comes from them otherwise follows from the other rules, which then accept no peer's packets.
func addWireGuardRules(add func(chain, comment string, words ...any), d Desired, f family) {
	const device = `"` + model.WireGuardName + `"`
	if d.Strict {
		add(departingChain, "not encrypted: nothing to other nodes' pods", "oifname !=", "{", `"lo"`, ",", `"`+d.Gateway+`"`, ",",
			device, "}", f.header, "daddr", "@pods-"+f.suffix, "counter drop")
	}
	if d.WireGuard == nil {
		return
	}
	port := []any{"udp dport", d.WireGuard.Port}
	add(enteredChain, "WireGuard of nodes: not tracked, not translated",
		"meta nfproto", f.proto, "fib daddr type local", port[0], port[1], f.header, "saddr", "@nodes-"+f.suffix, "notrack accept")
	add(leavingChain, "WireGuard to nodes: not tracked, not translated",
		f.header, "daddr", "@nodes-"+f.suffix, "udp sport", d.WireGuard.Port, "notrack")
	add(servicesChain, "WireGuard: not a Service", "meta nfproto", f.proto, port[0], port[1], "return")
	local, ok := d.local(f.is4)
	if !ok {
		return
	}
	add(enteredChain, "WireGuard: for this node's pods", "iifname", device, f.header, "daddr", local.String(), "accept")
	add(enteredChain, "WireGuard: for others", "iifname", device, "meta nfproto", f.proto, "counter drop")
}
