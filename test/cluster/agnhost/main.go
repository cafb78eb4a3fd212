// Command agnhost is Kubernetes' agnhost, with SCTP of its own for machines whose kernel has none. There it takes the
// place of upstream's program, which it runs for everything else.
//
// Like upstream, `porter` listens on the ports of its environment's SERVE_SCTP_PORT_N, and `connect --protocol=sctp
// HOST:PORT` ends with status 0 when that port answers, or prints TIMEOUT. Of an association it makes the two packets
// that tell whether there can be one: INIT and INIT ACK.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// upstream is where the image has upstream's program.
const upstream = "/agnhost.upstream"

// Ports of clients begin here.
const ephemeral = 49152

func main() {
	err := run(os.Args, os.Environ())
	if errors.Is(err, os.ErrDeadlineExceeded) {
		fmt.Fprintln(os.Stderr, "TIMEOUT")
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "OTHER:", err)
	}
	if err != nil {
		os.Exit(1)
	}
}

func run(args, environ []string) error {
	if len(args) > 1 && args[1] == "porter" {
		if ports, err := served(environ); err != nil || len(ports) > 0 {
			return errors.Join(err, serve(ports))
		}
	}
	if len(args) > 1 && args[1] == "connect" {
		if to, timeout, ok := dialed(args[2:]); ok {
			return connect(to, timeout)
		}
	}
	return syscall.Exec(upstream, args, environ)
}

// served returns the ports of SERVE_SCTP_PORT_N.
func served(environ []string) (ports []uint16, err error) {
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if number, ok := strings.CutPrefix(name, "SERVE_SCTP_PORT_"); ok {
			port, err := strconv.ParseUint(number, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			ports = append(ports, uint16(port))
		}
	}
	return ports, nil
}

// dialed returns what `connect` is to reach, if that is by SCTP and needs no name server.
func dialed(args []string) (to netip.AddrPort, timeout time.Duration, ok bool) {
	flags := flag.NewFlagSet("connect", flag.ContinueOnError)
	protocol := flags.String("protocol", "tcp", "")
	flags.DurationVar(&timeout, "timeout", 0, "")
	flags.SetOutput(&strings.Builder{}) // upstream's complain
	if flags.Parse(args) != nil || *protocol != "sctp" || flags.NArg() != 1 {
		return netip.AddrPort{}, 0, false
	}
	to, err := netip.ParseAddrPort(flags.Arg(0))
	return to, timeout, err == nil
}

// serve answers every INIT for one of the ports.
func serve(ports []uint16) error {
	failed := make(chan error)
	for _, v6 := range []bool{false, true} {
		s, err := open(v6)
		if err != nil {
			return err
		}
		go func() {
			failed <- s.receive(time.Time{}, func(p packet) (bool, error) {
				if p.chunk != initChunk || !slices.Contains(ports, p.dst) {
					return false, nil
				}
				return false, s.send(p.src.Addr(), packet{src: netip.AddrPortFrom(netip.Addr{}, p.dst), dst: p.src.Port(),
					verificationTag: p.initiateTag, chunk: initAckChunk, initiateTag: p.initiateTag})
			})
		}()
	}
	return <-failed
}

// connect sends INIT, again every second, until the INIT ACK comes. Without a timeout it never gives up.
func connect(to netip.AddrPort, timeout time.Duration) error {
	s, err := open(to.Addr().Is6())
	if err != nil {
		return err
	}
	// The port and the tag are like no other client's of this network namespace.
	local, tag := uint16(ephemeral+os.Getpid()%(1<<16-ephemeral)), uint32(time.Now().UnixNano())|1
	for begun := time.Now(); ; {
		if err := s.send(to.Addr(), packet{src: netip.AddrPortFrom(netip.Addr{}, local), dst: to.Port(), chunk: initChunk,
			initiateTag: tag}); err != nil {
			return err
		}
		again := time.Now().Add(time.Second)
		if end := begun.Add(timeout); timeout > 0 && end.Before(again) {
			again = end
		}
		err := s.receive(again, func(p packet) (bool, error) {
			return p.src == to && p.dst == local && p.chunk == initAckChunk && p.verificationTag == tag, nil
		})
		if !errors.Is(err, os.ErrDeadlineExceeded) || timeout > 0 && time.Since(begun) >= timeout {
			return err
		}
	}
}
