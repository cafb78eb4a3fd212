package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// dialsAtOnce bounds how many targets are tried at the same time. Datagrams of more than largeDatagram bytes go one
// after the other: together, their fragments would overflow the buffers of any switch on the way.
const (
	dialsAtOnce   = 16
	largeDatagram = 8192
)

// dial reaches many targets at once, so that a full mesh costs one exec per pod. A target that cannot be reached is a
// result, not a failure of the command.
func dial(_ []string) error {
	var request wire.DialRequest
	if err := readJSON(&request); err != nil {
		return err
	}
	return printJSON(dialAll(request))
}

func dialAll(request wire.DialRequest) wire.DialReply {
	reply := wire.DialReply{Results: make([]wire.Result, len(request.Targets))}
	slots := make(chan struct{}, dialsAtOnce)
	var large sync.Mutex
	var wg sync.WaitGroup
	for i, target := range request.Targets {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if target.Proto == wire.UDP && target.Size > largeDatagram {
				large.Lock()
				defer large.Unlock()
			}
			reply.Results[i] = dialTarget(target)
		})
	}
	wg.Wait()
	return reply
}

func dialTarget(t wire.Target) wire.Result {
	result := wire.Result{Target: t, Error: "no attempt was asked for"}
	for result.Attempts < t.Attempts && result.Error != "" {
		result.Attempts++
		start := time.Now()
		observed, err := dialOnce(t)
		result.RTT, result.Observed, result.Error = time.Since(start), observed, ""
		if err != nil {
			result.Error = err.Error()
		}
	}
	return result
}

func dialOnce(t wire.Target) (observed netip.AddrPort, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), t.Timeout)
	defer cancel()
	switch t.Proto {
	case wire.ICMP:
		return observed, pingOnce(ctx, t)
	case wire.TCP:
		return dialTCP(ctx, t)
	case wire.UDP:
		return dialUDP(ctx, t)
	case wire.Connect:
		conn, err := connectTCP(ctx, t)
		if err != nil {
			return observed, err
		}
		return observed, conn.Close()
	}
	return observed, fmt.Errorf("unknown protocol %q", t.Proto)
}

func connectTCP(ctx context.Context, t wire.Target) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(t.Addr, t.Port).String())
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	return conn, conn.SetDeadline(deadline)
}

func dialTCP(ctx context.Context, t wire.Target) (observed netip.AddrPort, err error) {
	conn, err := connectTCP(ctx, t)
	if err != nil {
		return observed, err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if observed, err = readGreeting(r); err != nil {
		return observed, err
	}
	sent, got := randomBytes(t.Size), make([]byte, t.Size)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- err
	}()
	if _, err := io.ReadFull(r, got); err != nil {
		return observed, fmt.Errorf("read echo: %w", err)
	}
	if err := <-wrote; err != nil {
		return observed, fmt.Errorf("write: %w", err)
	}
	return observed, sameBytes(sent, got)
}

func dialUDP(ctx context.Context, t wire.Target) (observed netip.AddrPort, err error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(t.Addr, t.Port)))
	if err != nil {
		return observed, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := errors.Join(conn.SetDeadline(deadline), conn.SetReadBuffer(receiveBuffer)); err != nil {
		return observed, err
	}
	if t.Opened {
		if _, err := echoed(conn, 8); err != nil {
			return observed, fmt.Errorf("the first datagram: %w", err)
		}
	}
	return echoed(conn, t.Size)
}

// echoed sends a datagram and reads its echo, with the address that the echo server sees.
func echoed(conn *net.UDPConn, size int) (observed netip.AddrPort, err error) {
	sent := randomBytes(size)
	if _, err := conn.Write(sent); err != nil {
		return observed, err
	}
	buf := make([]byte, maxDatagram)
	n, err := conn.Read(buf)
	if err != nil {
		return observed, fmt.Errorf("read echo: %w", err)
	}
	r := bufio.NewReader(bytes.NewReader(buf[:n]))
	if observed, err = readGreeting(r); err != nil {
		return observed, err
	}
	got, err := io.ReadAll(r)
	if err != nil {
		return observed, err
	}
	return observed, sameBytes(sent, got)
}

// readGreeting reads the line in which the echo server tells the address it sees.
func readGreeting(r *bufio.Reader) (netip.AddrPort, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read greeting: %w", err)
	}
	return netip.ParseAddrPort(strings.TrimSpace(line))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, says crypto/rand
	return b
}

func sameBytes(sent, got []byte) error {
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("the echo differs: sent %d bytes, got %d", len(sent), len(got))
	}
	return nil
}
