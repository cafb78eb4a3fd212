package connectivity

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
)

// dialsAtOnce bounds how many targets are tried at the same time.
const dialsAtOnce = 16

// Dial tries targets, side by side. A target that cannot be reached is a result.
func Dial(ctx context.Context, targets []Target) []Result {
	results := make([]Result, len(targets))
	slots := make(chan struct{}, dialsAtOnce)
	var group sync.WaitGroup
	for i, t := range targets {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			for range max(1, t.Attempts) {
				if results[i] = try(ctx, t); results[i].Error == "" {
					return
				}
			}
		})
	}
	group.Wait()
	return results
}

// try tries a target once.
func try(ctx context.Context, t Target) (r Result) {
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	how := map[Protocol]func(context.Context, Target, *Result) error{HTTP: tryHTTP, UDP: tryUDP, TCP: tryTCP,
		DNS: tryDNS}[t.Protocol]
	if how == nil {
		return Result{Error: fmt.Sprintf("unknown protocol %q", t.Protocol)}
	}
	if err := how(ctx, t, &r); err != nil {
		r.Error = why(ctx, t, err)
	}
	return r
}

// why is an error in a few words.
func why(ctx context.Context, t Target, err error) string {
	var timeout net.Error
	if ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Sprintf("no answer within %s", t.Timeout)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

func tryTCP(ctx context.Context, t Target, _ *Result) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", t.Address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func tryHTTP(ctx context.Context, t Target, _ *Result) error {
	body := random(t.Size)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+t.Address+"/", bytes.NewReader(body))
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	got, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil {
		return err
	}
	return same(body, got)
}

func tryUDP(ctx context.Context, t Target, r *Result) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", t.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline() // try has set one
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	size := t.Size
	if size == LargestPacket {
		mtu, headers, err := mtuOf(conn.LocalAddr())
		if err != nil {
			return err
		}
		size = mtu - headers
		r.Detail = fmt.Sprintf("packet of %d bytes", mtu)
	}
	sent, got := random(size), make([]byte, 1<<16)
	if _, err := conn.Write(sent); err != nil {
		return err
	}
	n, err := conn.Read(got)
	if err != nil {
		return err
	}
	return same(sent, got[:n])
}

// mtuOf is the MTU of the interface that has an address, and the length of the headers of a UDP packet there.
func mtuOf(local net.Addr) (mtu, headers int, err error) {
	const ip4, ip6, udp = 20, 40, 8
	addr, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return 0, 0, err
	}
	headers = ip6 + udp
	if addr.Addr().Unmap().Is4() {
		headers = ip4 + udp
	}
	links, err := net.Interfaces()
	if err != nil {
		return 0, 0, err
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			return 0, 0, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr.Addr().Unmap().WithZone("") {
				return min(link.MTU, 1<<16-1), headers, nil
			}
		}
	}
	return 0, 0, fmt.Errorf("no interface has the address %s", addr.Addr())
}

func tryDNS(ctx context.Context, t Target, _ *Result) error {
	found, err := (&net.Resolver{PreferGo: true}).LookupNetIP(ctx, "ip", t.Address)
	if err != nil {
		return err
	}
	for _, a := range found {
		if len(t.Want) == 0 || slices.Contains(t.Want, a.Unmap()) {
			return nil
		}
	}
	return fmt.Errorf("it has the addresses %v, not %v", found, t.Want)
}

func random(size int) []byte {
	b := make([]byte, max(0, size))
	_, _ = rand.Read(b) // never fails, says crypto/rand
	return b
}

func same(sent, got []byte) error {
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("sent %d bytes and got back %d others", len(sent), len(got))
	}
	return nil
}
