package ofswitch

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/internal/unixctl"
)

// userspaceDatapath is the name that ovs-vswitchd gives its one userspace datapath.
const userspaceDatapath = "netdev@ovs-netdev"

// The limits of the userspace datapath's fragment table, as far as lib/ipf.c of Open vSwitch 3.1 lets them go. Its
// defaults drop every fragment below 1,200 bytes (IPv4) or 1,280 (IPv6) that is not its datagram's last, and hold
// 1,000 fragments.
const (
	minFragment  = 400
	maxFragments = 5000
)

// appctl gives ovs-vswitchd a command and returns what it prints.
func (s *Switch) appctl(ctx context.Context, command string, args ...string) (string, error) {
	socket, err := unixctl.Socket(s.ovsRunDir, "ovs-vswitchd")
	if err != nil {
		return "", err
	}
	return unixctl.Call(ctx, socket, command, args...)
}

// EnsureFragments makes the switch treat fragments as the flows expect, and take as many and as small ones as it can.
// It returns what it changed, in words. ovs-vswitchd forgets all of it when it ends. Idempotent; what fails leaves
// the rest as it is.
func (s *Switch) EnsureFragments(ctx context.Context) (changed []string, err error) {
	// "nx-match" shows flows the ports of a first fragment, by which policies judge the datagram; "normal" shows
	// every fragment with ports 0, the first one, too; "drop" drops all (ovs-ofctl(8), set-frags).
	text, err := s.ask(ctx, "get-frags")
	if err != nil {
		return nil, err
	}
	if mode := strings.TrimSpace(text); mode != "nx-match" {
		if _, err := s.ask(ctx, "set-frags", "nx-match"); err != nil {
			return nil, err
		}
		changed = append(changed, fmt.Sprintf("handling of fragments: %q to \"nx-match\"", mode))
	}
	if !s.userspace {
		return changed, nil
	}
	status, err := s.appctl(ctx, "dpctl/ipf-get-status", userspaceDatapath)
	if err != nil {
		return changed, fmt.Errorf("read the limits of fragments: %w", err)
	}
	for _, limit := range []struct {
		name    string
		want    string
		command string
		args    []string
	}{
		{"v4 enabled", "1", "dpctl/ipf-set-enabled", []string{"v4"}},
		{"v6 enabled", "1", "dpctl/ipf-set-enabled", []string{"v6"}},
		{"min v4 frag size", strconv.Itoa(minFragment), "dpctl/ipf-set-min-frag", []string{"v4", strconv.Itoa(minFragment)}},
		{"min v6 frag size", strconv.Itoa(minFragment), "dpctl/ipf-set-min-frag", []string{"v6", strconv.Itoa(minFragment)}},
		{"max num frags (v4/v6)", strconv.Itoa(maxFragments), "dpctl/ipf-set-max-nfrags",
			[]string{strconv.Itoa(maxFragments)}},
	} {
		now, ok := statusValue(status, limit.name)
		if ok && now == limit.want {
			continue
		}
		if _, err := s.appctl(ctx, limit.command, append([]string{userspaceDatapath}, limit.args...)...); err != nil {
			return changed, fmt.Errorf("set the limit of fragments %q to %s: %w", limit.name, limit.want, err)
		}
		if ok { // an unknown name is not worth a line a minute
			changed = append(changed, fmt.Sprintf("fragments, %s: %s to %s", limit.name, now, limit.want))
		}
	}
	return changed, nil
}

// EnsureLiberal makes the userspace datapath accept TCP packets outside of their connection's window, as
// nf_conntrack_tcp_be_liberal makes Linux. A client's port may be used again while the endpoint still has an older
// connection in TIME_WAIT: the endpoint then acknowledges the older one, which the client must hear, and the client's
// reset must come back. Policies do not depend on the window. It returns what it changed, in words. ovs-vswitchd
// forgets it when it ends. Idempotent.
func (s *Switch) EnsureLiberal(ctx context.Context) (changed []string, err error) {
	if !s.userspace {
		return nil, nil
	}
	const name = "TCP sequence checking"
	text, err := s.appctl(ctx, "dpctl/ct-get-tcp-seq-chk", userspaceDatapath)
	if err != nil {
		return nil, fmt.Errorf("read whether TCP windows are checked: %w", err)
	}
	now, _ := statusValue(text, name)
	if now == "disabled" {
		return nil, nil
	}
	if _, err := s.appctl(ctx, "dpctl/ct-disable-tcp-seq-chk", userspaceDatapath); err != nil {
		return nil, fmt.Errorf("stop the check of TCP windows: %w", err)
	}
	return []string{fmt.Sprintf("%s: %s to disabled", name, now)}, nil
}

// EnsureZoneLimit bounds how many connections the userspace datapath tracks in a zone. It returns what it changed, in
// words. ovs-vswitchd forgets it when it ends. Idempotent.
func (s *Switch) EnsureZoneLimit(ctx context.Context, zone uint16, limit int) (changed []string, err error) {
	if !s.userspace {
		return nil, nil
	}
	text, err := s.appctl(ctx, "dpctl/ct-get-limits", userspaceDatapath, fmt.Sprintf("zone=%d", zone))
	if err != nil {
		return nil, fmt.Errorf("read the limit of zone %d: %w", zone, err)
	}
	want := fmt.Sprintf("zone=%d,limit=%d", zone, limit)
	if strings.Contains(text, want+",") {
		return nil, nil
	}
	if _, err := s.appctl(ctx, "dpctl/ct-set-limits", userspaceDatapath, want); err != nil {
		return nil, fmt.Errorf("limit zone %d to %d connections: %w", zone, limit, err)
	}
	return []string{fmt.Sprintf("zone %d: at most %d connections", zone, limit)}, nil
}

// statusValue finds a value in lines of the form "name: value".
func statusValue(text, name string) (string, bool) {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

// Occupancy is how full the switch's tables are.
type Occupancy struct {
	// CacheEntries are the datapath's entries of all bridges that share the datapath, CacheLimit as many as
	// ovs-vswitchd makes now: it lowers the limit while it cannot check all entries in time.
	CacheEntries, CacheLimit uint64
	// Connections are those of the userspace datapath, all zones together; beyond ConnectionLimit it refuses new
	// ones. Both are 0 on the kernel's datapath, where connections are the kernel's.
	Connections, ConnectionLimit uint64
	// Version is that of ovs-vswitchd, as 3.1.0.
	Version string
}

// Occupancy reads how full the switch's tables are. It costs no dump.
func (s *Switch) Occupancy(ctx context.Context) (o Occupancy, err error) {
	version, err := s.appctl(ctx, "version")
	if err != nil {
		return o, err
	}
	o.Version = daemonVersion(version)
	text, err := s.appctl(ctx, "upcall/show")
	if err != nil {
		return o, err
	}
	prefix := "system@"
	if s.userspace {
		prefix = "netdev@"
	}
	if o.CacheEntries, o.CacheLimit, err = cacheOccupancy(text, prefix); err != nil || !s.userspace {
		return o, err
	}
	if o.Connections, err = s.number(ctx, "dpctl/ct-get-nconns"); err != nil {
		return o, err
	}
	o.ConnectionLimit, err = s.number(ctx, "dpctl/ct-get-maxconns")
	return o, err
}

// daemonVersion finds the version in "ovs-vswitchd (Open vSwitch) 3.1.0", which may be followed by other lines.
func daemonVersion(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return strings.TrimSpace(line[strings.LastIndex(line, ") ")+1:])
}

// number asks for one number about the userspace datapath.
func (s *Switch) number(ctx context.Context, command string) (uint64, error) {
	text, err := s.appctl(ctx, command, userspaceDatapath)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", command, err)
	}
	return n, nil
}

var cacheText = regexp.MustCompile(`\(current (\d+)\).*\(limit (\d+)\)`)

// cacheOccupancy finds a datapath's numbers in the answer to upcall/show, which lists each under its name.
func cacheOccupancy(text, prefix string) (entries, limit uint64, err error) {
	_, after, ok := strings.Cut("\n"+text, "\n"+prefix)
	if !ok {
		return 0, 0, fmt.Errorf("upcall/show: no datapath %s", prefix)
	}
	m := cacheText.FindStringSubmatch(after)
	if m == nil {
		return 0, 0, fmt.Errorf("upcall/show: no number of flows: %q", text)
	}
	if entries, err = strconv.ParseUint(m[1], 10, 64); err != nil {
		return 0, 0, fmt.Errorf("upcall/show: %w", err)
	}
	if limit, err = strconv.ParseUint(m[2], 10, 64); err != nil {
		return 0, 0, fmt.Errorf("upcall/show: %w", err)
	}
	return entries, limit, nil
}
