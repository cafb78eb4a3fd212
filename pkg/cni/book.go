package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"

	"github.com/weft-cni/weft/pkg/model"
)

// book records what the node's attachments own: addresses, OpenFlow ports and link names. An entry lives from before
// the first thing is made for the attachment until the last one is gone, so nothing is ever given twice.
type book struct {
	mu      sync.Mutex
	entries map[model.AttachmentKey]entry
	ips     map[netip.Addr]model.AttachmentKey
	ports   map[uint32]model.AttachmentKey
	names   map[string]model.AttachmentKey
	orphans map[string]struct{} // the links of orphan.go
	// lastIP and lastPort are where the rotation stands. With freed, what was freed last comes up last.
	lastIP   map[netip.Prefix]netip.Addr
	lastPort uint32
	freed    freed
	// resume are the addresses that an earlier agent gave last.
	resume []netip.Addr
}

type entry struct {
	att model.Attachment
	// complete is set from the success of ADD until the removal begins. What is not complete is being added or removed, or
	// could not be rolled back or removed.
	complete bool
}

func newBook() *book {
	return &book{
		entries:  map[model.AttachmentKey]entry{},
		ips:      map[netip.Addr]model.AttachmentKey{},
		ports:    map[uint32]model.AttachmentKey{},
		names:    map[string]model.AttachmentKey{},
		orphans:  map[string]struct{}{},
		lastIP:   map[netip.Prefix]netip.Addr{},
		lastPort: model.PortPodMin - 1,
	}
}

// reserve gives a new attachment its addresses (one of each range), its OpenFlow port and its link name. mac overrides
// the address-derived one unless it is zero.
func (b *book) reserve(key model.AttachmentKey, pod model.PodRef, cidrs []netip.Prefix, mac model.MAC) (model.Attachment, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, ok := b.entries[key]; ok {
		if !e.complete {
			return model.Attachment{}, errorf(ErrAlreadyAttached, "container %s interface %s: an earlier ADD or DEL failed and left something of it; DEL it first", key.ContainerID, key.IfName)
		}
		return model.Attachment{}, errorf(ErrAlreadyAttached, "container %s is already attached with interface %s and address %v; DEL it first", key.ContainerID, key.IfName, e.att.IPs)
	}
	att := model.Attachment{ContainerID: key.ContainerID, IfName: key.IfName, Pod: pod, MAC: mac}
	var err error
	if att.OFPort, err = b.nextPort(); err != nil {
		return model.Attachment{}, err
	}
	if att.HostIfName, err = b.freeName(pod, key); err != nil {
		return model.Attachment{}, err
	}
	for _, cidr := range cidrs {
		ip, err := b.allocate(key, cidr)
		if err != nil {
			b.freeIPs(key)
			return model.Attachment{}, err
		}
		att.IPs = append(att.IPs, ip)
	}
	if mac == (model.MAC{}) {
		att.MAC = macFor(att.IPs)
	}
	b.lastPort = att.OFPort
	b.enter(entry{att: att})
	return att, nil
}

// load enters what an earlier run recorded. It is entered even when its address or port is recorded twice, so that DEL
// can end the conflict; the error says who conflicts.
func (b *book) load(att model.Attachment) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, ip := range att.IPs {
		if other, ok := b.ips[ip]; ok {
			errs = append(errs, fmt.Errorf("attachments %s and %s are both recorded with address %s", other, att.Key(), ip))
		}
	}
	if other, ok := b.ports[att.OFPort]; ok {
		errs = append(errs, fmt.Errorf("attachments %s and %s are both recorded with OpenFlow port %d", other, att.Key(), att.OFPort))
	}
	b.lastPort = max(b.lastPort, att.OFPort)
	b.enter(entry{att: att, complete: true})
	return errors.Join(errs...)
}

func (b *book) enter(e entry) {
	key := e.att.Key()
	b.entries[key] = e
	b.ports[e.att.OFPort] = key
	b.names[e.att.HostIfName] = key
	for _, ip := range e.att.IPs {
		b.ips[ip] = key
	}
}

// complete keeps the attachment as it was made.
func (b *book) complete(att model.Attachment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entries[att.Key()] = entry{att: att, complete: true}
}

// free tells whether no other attachment has an address or the port number of this one.
func (b *book) free(att model.Attachment) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, used := b.ports[att.OFPort]
	return !used && !slices.ContainsFunc(att.IPs, func(ip netip.Addr) bool { _, used := b.ips[ip]; return used })
}

// dissolve says that the attachment is no longer whole.
func (b *book) dissolve(key model.AttachmentKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, ok := b.entries[key]; ok {
		b.entries[key] = entry{att: e.att}
	}
}

// release frees everything that the attachment owns. Its port, flows and link must be gone.
func (b *book) release(key model.AttachmentKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.entries[key]
	if !ok {
		return
	}
	b.forget(key)
	if b.ports[e.att.OFPort] == key {
		delete(b.ports, e.att.OFPort)
	}
	delete(b.names, e.att.HostIfName)
	delete(b.entries, key)
}

func (b *book) get(key model.AttachmentKey) (model.Attachment, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.entries[key]
	return e.att, ok
}

// whole lists the complete attachments.
func (b *book) whole() []model.Attachment {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []model.Attachment
	for _, e := range b.entries {
		if e.complete {
			list = append(list, e.att)
		}
	}
	return list
}

// isWhole tells whether the attachment is still there and complete. Its key may have become another one's.
func (b *book) isWhole(att model.Attachment) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[att.Key()]
	return e.complete && e.att.OFPort == att.OFPort && slices.Equal(e.att.IPs, att.IPs)
}

// keys lists every attachment, in a fixed order.
func (b *book) keys() []model.AttachmentKey {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Keys(b.entries), func(x, y model.AttachmentKey) int {
		return strings.Compare(x.String(), y.String())
	})
}

// exhausted returns the first range that has no address left.
func (b *book) exhausted(cidrs []netip.Prefix) (netip.Prefix, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, cidr := range cidrs {
		// Not for pods: the network's own address, the gateway and, in IPv4, the broadcast address.
		hostBits, reserved := cidr.Addr().BitLen()-cidr.Bits(), 2
		if cidr.Addr().Is4() {
			reserved = 3
		}
		if hostBits >= 31 {
			continue
		}
		used := 0
		for ip := range b.ips {
			if cidr.Contains(ip) {
				used++
			}
		}
		if used >= 1<<hostBits-reserved {
			return cidr, true
		}
	}
	return netip.Prefix{}, false
}

func (b *book) nextPort() (uint32, error) {
	const count = model.PortPodMax - model.PortPodMin + 1
	for i := range count {
		p := model.PortPodMin + (b.lastPort-model.PortPodMin+1+i)%count
		if _, used := b.ports[p]; !used {
			return p, nil
		}
	}
	return 0, errorf(ErrPoolExhausted, "all %d OpenFlow ports for pods are in use on this node", count)
}

// freeName makes the name of the node's end of the veth: readable, and unique on the node.
func (b *book) freeName(pod model.PodRef, key model.AttachmentKey) (string, error) {
	for salt := range 100 {
		name := hostIfName(pod, key, salt)
		if _, used := b.names[name]; !used {
			return name, nil
		}
	}
	return "", errorf(cnitypes.ErrInternal, "no free link name for %s", key)
}

// hostIfName is up to eight characters of the pod's name and six hexadecimal digits: at most the 15 that Linux allows.
func hostIfName(pod model.PodRef, key model.AttachmentKey, salt int) string {
	// A dot would be a path separator in sysctl names.
	readable := strings.ReplaceAll(pod.Name, ".", "-")
	readable = strings.TrimRight(readable[:min(8, len(readable))], "-")
	return readable + nameSuffix(key, salt)
}

func nameSuffix(key model.AttachmentKey, salt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", key, salt))
	return "-" + hex.EncodeToString(sum[:3])
}

// mayBeNameOf tells whether hostIfName makes that name for the attachment, whatever its pod is called.
func mayBeNameOf(name string, key model.AttachmentKey) bool {
	return strings.HasSuffix(name, nameSuffix(key, 0))
}

// macFor derives a MAC that is unique as long as the address is.
func macFor(ips []netip.Addr) model.MAC {
	for _, ip := range ips {
		if ip.Is4() {
			a := ip.As4()
			return model.MAC{0x0a, 0x58, a[0], a[1], a[2], a[3]}
		}
	}
	var h [sha256.Size]byte
	if len(ips) > 0 {
		a := ips[0].As16()
		h = sha256.Sum256(a[:])
	}
	return model.MAC{0x0a, 0x58, h[0], h[1], h[2], h[3]}
}

// allocate takes the next free address of a range that was not freed lately, and without one the one that was freed first.
// The gateway, which is the first one, is never given.
func (b *book) allocate(key model.AttachmentKey, cidr netip.Prefix) (netip.Addr, error) {
	r := allocator.Range{Subnet: cnitypes.IPNet{
		IP:   cidr.Masked().Addr().AsSlice(),
		Mask: net.CIDRMask(cidr.Bits(), cidr.Addr().BitLen()),
	}}
	if err := r.Canonicalize(); err != nil {
		return netip.Addr{}, errorf(ErrPoolExhausted, "pod CIDR %s of this node: %v", cidr, err)
	}
	get := func(avoid bool, ip net.IP) (*current.IPConfig, error) {
		ips := &store{b: b, cidr: cidr.Masked(), avoid: avoid}
		return allocator.NewIPAllocator(&allocator.RangeSet{r}, ips, 0).Get(key.ContainerID, key.IfName, ip)
	}
	conf, err := get(true, nil)
	for _, ip := range b.freed.in(cidr) {
		if err == nil {
			break
		}
		conf, err = get(false, ip.AsSlice())
	}
	if err != nil {
		// The store never fails and the key is new, so there is one reason left.
		return netip.Addr{}, errorf(ErrPoolExhausted, "no address is left in pod CIDR %s of this node (%v)", cidr, err)
	}
	ip, ok := netip.AddrFromSlice(conf.Address.IP)
	if !ok {
		return netip.Addr{}, fmt.Errorf("host-local's allocator returned %v", conf.Address)
	}
	return ip.Unmap(), nil
}

func (b *book) freeIPs(key model.AttachmentKey) {
	for ip, owner := range b.ips {
		if owner == key {
			delete(b.ips, ip)
		}
	}
}

// forget is freeIPs for addresses that a pod has had.
func (b *book) forget(key model.AttachmentKey) {
	for ip, owner := range b.ips {
		if owner == key {
			b.freed.add(ip)
		}
	}
	b.freeIPs(key)
}

// store lets host-local's allocator work on the book. The book's mutex is held around every use, so Lock does nothing.
type store struct {
	b    *book
	cidr netip.Prefix
	// avoid keeps addresses back that were freed lately.
	avoid bool
}

func (s *store) Lock() error   { return nil }
func (s *store) Unlock() error { return nil }
func (s *store) Close() error  { return nil }

func (s *store) Reserve(id, ifname string, ip net.IP, _ string) (bool, error) {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return false, errors.New("not an IP address: " + ip.String())
	}
	addr = addr.Unmap()
	if _, used := s.b.ips[addr]; used || s.avoid && s.b.freed.has[addr] {
		return false, nil
	}
	s.b.freed.remove(addr)
	s.b.ips[addr] = model.AttachmentKey{ContainerID: id, IfName: ifname}
	s.b.lastIP[s.cidr] = addr
	return true, nil
}

// last are the addresses that were given last, one of each range, in a fixed order.
func (b *book) last() []netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	var last []netip.Addr
	for _, ip := range b.resume {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(b.lastIP)), func(cidr netip.Prefix) bool { return cidr.Contains(ip) }) {
			last = append(last, ip)
		}
	}
	return slices.SortedFunc(slices.Values(slices.AppendSeq(last, maps.Values(b.lastIP))), netip.Addr.Compare)
}

// LastReservedIP is where the allocator goes on. After a restart of the agent that is where the earlier one stopped, and
// without a record of that, the highest address in use.
func (s *store) LastReservedIP(string) (net.IP, error) {
	last := s.b.lastIP[s.cidr]
	for _, ip := range s.b.resume {
		if !last.IsValid() && s.cidr.Contains(ip) {
			last = ip
		}
	}
	if !last.IsValid() {
		for ip := range s.b.ips {
			if s.cidr.Contains(ip) && (!last.IsValid() || last.Less(ip)) {
				last = ip
			}
		}
	}
	return last.AsSlice(), nil
}

func (s *store) ReleaseByID(id, ifname string) error {
	s.b.freeIPs(model.AttachmentKey{ContainerID: id, IfName: ifname})
	return nil
}

func (s *store) GetByID(id, ifname string) []net.IP {
	var ips []net.IP
	for ip, owner := range s.b.ips {
		if owner == (model.AttachmentKey{ContainerID: id, IfName: ifname}) {
			ips = append(ips, ip.AsSlice())
		}
	}
	return ips
}
