package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctl reads and writes kernel settings below root.
type sysctl struct{ root string }

func (s sysctl) get(name string) (string, error) {
	value, err := os.ReadFile(filepath.Join(s.root, name))
	if err != nil {
		return "", fmt.Errorf("read kernel setting: %w", err)
	}
	return strings.TrimSpace(string(value)), nil
}

func (s sysctl) number(name string) (uint64, error) {
	text, err := s.get(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read kernel setting %s: %w", name, err)
	}
	return n, nil
}

// set writes the value if it differs.
func (s sysctl) set(c *changes, name, value string) error {
	have, err := s.get(name)
	if err != nil {
		return err
	}
	if have != value {
		if err := os.WriteFile(filepath.Join(s.root, name), []byte(value), 0); err != nil {
			return fmt.Errorf("set kernel setting to %s (is %s mounted writable?): %w", value, s.root, err)
		}
		c.add("%s: %s to %s", name, have, value)
	}
	return nil
}

// syncForwarding enables forwarding and reassembly for pods, and keeps router advertisements working.
func (h *Host) syncForwarding(c *changes, d Desired) error {
	if err := h.sysctl.set(c, "net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if d.KernelDatapath {
		if err := h.fragmentDistance(c); err != nil {
			return err
		}
	}
	if _, ok := d.local(false); !ok {
		return nil
	}
	if err := h.keepRouterAdvertisements(c); err != nil {
		return err
	}
	return h.sysctl.set(c, "net/ipv6/conf/all/forwarding", "1")
}

// minFragmentDistance is how many fragments a source may send between two of one datagram. Beyond, the kernel gives the
// datagram up (net.ipv4.ipfrag_max_dist, 64 by default). An upcall delays the first fragment of a connection; later
// ones, which have no ports, match a datapath flow that exists and pass it, more than 64 of a busy pod's. The kernel
// holds about 1,800 fragments at once (ipfrag_high_thresh, 4 MB). Its limit is about IP IDs that are used again, which
// a sender does after 65,536 datagrams.
const minFragmentDistance = 4096

// fragmentDistance raises the kernel's limit for IPv4; IPv6 has none. 0 means unlimited (ip-sysctl).
func (h *Host) fragmentDistance(c *changes) error {
	const name = "net/ipv4/ipfrag_max_dist"
	if distance, err := h.sysctl.number(name); err != nil || distance == 0 || distance >= minFragmentDistance {
		return err
	}
	return h.sysctl.set(c, name, strconv.Itoa(minFragmentDistance))
}

// keepRouterAdvertisements sets accept_ra=2 on links whose router advertisements gave the node its default route. A
// kernel that forwards accepts advertisements only with 2, and deletes these routes at the moment when forwarding is
// enabled (ip-sysctl). Links with 0 stay: another program handles their advertisements.
func (h *Host) keepRouterAdvertisements(c *changes) error {
	const forwarding = "net/ipv6/conf/all/forwarding"
	if on, err := h.sysctl.get(forwarding); err != nil || on == "1" {
		return err
	}
	filter := &netlink.Route{Protocol: unix.RTPROT_RA}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, filter, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes from router advertisements: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && prefix(r.Dst).Bits() != 0 {
			continue
		}
		links := []int{r.LinkIndex}
		for _, path := range r.MultiPath {
			links = append(links, path.LinkIndex)
		}
		for _, index := range links {
			link, err := netlink.LinkByIndex(index)
			if err != nil {
				continue // deleted meanwhile, with its routes
			}
			name := "net/ipv6/conf/" + link.Attrs().Name + "/accept_ra"
			if value, err := h.sysctl.get(name); err != nil {
				return err
			} else if value != "1" {
				continue
			}
			if err := h.sysctl.set(c, name, "2"); err != nil {
				return err
			}
		}
	}
	return nil
}

// linkSysctls enables IPv6 on the gateway interface without duplicate address detection: its addresses are unique, and
// usable at once.
func (h *Host) linkSysctls(c *changes, d Desired) error {
	if err := h.looseReversePath(c, d.Gateway); err != nil {
		return err
	}
	if _, ok := d.local(false); !ok {
		return nil
	}
	for _, s := range []struct{ name, value string }{{"disable_ipv6", "0"}, {"accept_dad", "0"}} {
		if err := h.sysctl.set(c, "net/ipv6/conf/"+d.Gateway+"/"+s.name, s.value); err != nil {
			return err
		}
	}
	return nil
}

// looseReversePath makes the kernel accept a Service's replies from its external address: the routes for unmarked
// packets to that address lead elsewhere. The switch has checked every source address on this link. 2 (loose) takes
// precedence over the 1 of "all" (ip-sysctl).
func (h *Host) looseReversePath(c *changes, gateway string) error {
	const strict = "1"
	name := func(link string) string { return "net/ipv4/conf/" + link + "/rp_filter" }
	all, err := h.sysctl.get(name("all"))
	if err != nil {
		return err
	}
	own, err := h.sysctl.get(name(gateway))
	if err != nil || all != strict && own != strict || max(all, own) > strict {
		return err
	}
	return h.sysctl.set(c, name(gateway), "2")
}

// Connections returns the number of connections in the kernel's conntrack table, including the switch's with the kernel
// datapath, and the maximum, above which the kernel drops packets of new connections. It reads below sysctlRoot (see
// New).
func Connections(sysctlRoot string) (count, limit uint64, err error) {
	s := sysctl{root: sysctlRoot}
	count, countErr := s.number("net/netfilter/nf_conntrack_count")
	limit, limitErr := s.number("net/netfilter/nf_conntrack_max")
	return count, limit, errors.Join(countErr, limitErr)
}
