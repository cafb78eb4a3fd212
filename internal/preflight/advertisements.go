package preflight

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// advertisements looks for links that lose what router advertisements gave them.
func (h Host) advertisements() Finding {
	f := Finding{Check: "IPv6 router advertisements", Saw: "no link depends on some that the kernel ignores"}
	links, err := IgnoredAdvertisements(h.path())
	switch {
	case err != nil:
		return unknown(f, err)
	case len(links) > 0:
		f.Saw = "the node forwards IPv6, so the kernel ignores those on " + strings.Join(links, ", ") + " (accept_ra is 1)"
		f.Do = AcceptAdvertisements(links)
	}
	return f
}

// AcceptAdvertisements says what to do about links with ignored advertisements.
func AcceptAdvertisements(links []string) string {
	list := make([]string, len(links))
	for i, link := range links {
		list[i] = "net.ipv6.conf." + strings.ReplaceAll(link, ".", "/") + ".accept_ra=2"
	}
	return "sysctl -w " + strings.Join(list, " ") + ", and in /etc/sysctl.d: or the default route and addresses go when they expire"
}

// Flags of /proc/net/ipv6_route (linux/ipv6_route.h) and /proc/net/if_inet6 (linux/if_addr.h).
const (
	fromAdvertisement = 0x40000 // RTF_ADDRCONF
	permanentAddress  = 0x80    // IFA_F_PERMANENT
)

// IgnoredAdvertisements returns the links that have a default route from router advertisements or a global address that
// expires, and whose further advertisements the kernel ignores: the link forwards, and its accept_ra is 1 (ip-sysctl).
// Links whose advertisements another program reads, such as systemd-networkd, have accept_ra 0. It reads below
// root/proc.
func IgnoredAdvertisements(root string) ([]string, error) {
	routes, err := fields(filepath.Join(root, "proc/net/ipv6_route"), 10)
	addresses, addrErr := fields(filepath.Join(root, "proc/net/if_inet6"), 6)
	if err := errors.Join(err, addrErr); err != nil {
		return nil, err
	}
	var links []string
	for _, r := range routes {
		if flags, err := strconv.ParseUint(r[8], 16, 32); err == nil && r[1] == "00" && flags&fromAdvertisement != 0 {
			links = append(links, r[9])
		}
	}
	for _, a := range addresses {
		if flags, err := strconv.ParseUint(a[4], 16, 32); err == nil && a[3] == "00" && flags&permanentAddress == 0 {
			links = append(links, a[5])
		}
	}
	slices.Sort(links)
	var ignored []string
	for _, link := range slices.Compact(links) {
		is := func(setting, want string) bool {
			value, err := os.ReadFile(filepath.Join(root, "proc/sys/net/ipv6/conf", link, setting))
			return err == nil && strings.TrimSpace(string(value)) == want
		}
		if is("forwarding", "1") && is("accept_ra", "1") {
			ignored = append(ignored, link)
		}
	}
	return ignored, nil
}

// fields are the words of a file's lines, of which each has n; none of a file that does not exist, as without IPv6.
func fields(file string, n int) ([][]string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list [][]string
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) != n {
			return nil, fmt.Errorf("read %s: %d words in %q, want %d", file, len(words), line, n)
		}
		list = append(list, words)
	}
	return list, err
}
