package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/host"
)

// resolvConf is the node's: the agent's pod has dnsPolicy Default.
const resolvConf = "/etc/resolv.conf"

// lookupTimeout bounds how long the API server's name may take to resolve.
const lookupTimeout = 5 * time.Second

// syncReserved finds the addresses that the node itself cannot do without: no Service may have them, whatever
// externalIPs say, for without them the node would not even learn that the Service is gone. What cannot be found now
// stays as it was.
func (a *Agent) syncReserved(ctx context.Context) error {
	a.mu.Lock()
	found := maps.Clone(a.reserved)
	a.mu.Unlock()
	if found == nil {
		found = map[netip.Addr]string{}
	}
	reserve := func(what string, addrs []netip.Addr) {
		maps.DeleteFunc(found, func(_ netip.Addr, old string) bool { return old == what })
		for _, addr := range addrs {
			if addr = addr.Unmap().WithZone(""); addr.IsValid() {
				found[addr] = what
			}
		}
	}
	var errs []error
	if u, err := url.Parse(a.config().APIServer); err == nil && u.Hostname() != "" {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname()) // an address is its own answer
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("resolve the API server's name: %w", err))
		} else {
			reserve(theAPIServer, addrs)
		}
	}
	if resolvers, err := readResolvers(resolvConf); err != nil {
		errs = append(errs, fmt.Errorf("read the node's resolvers: %w", err))
	} else {
		reserve("a resolver of the node", resolvers)
	}
	if hops, err := host.NextHops(); err != nil {
		errs = append(errs, err)
	} else {
		reserve("a next hop of the node's routes", hops)
	}
	if peers := a.peers.Addrs(); len(peers) > 0 { // without a connection it may be a Service that stands in its way
		reserve("the API server, to which the agent is connected", peers)
	}
	a.mu.Lock()
	changed := !maps.Equal(found, a.reserved)
	a.reserved = found
	a.mu.Unlock()
	if changed {
		a.wake(reservedChanged)
	}
	return errors.Join(errs...)
}

// readResolvers reads the addresses of a resolv.conf(5).
func readResolvers(file string) ([]netip.Addr, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []netip.Addr
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "nameserver" {
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				list = append(list, a)
			}
		}
	}
	return list, lines.Err()
}
