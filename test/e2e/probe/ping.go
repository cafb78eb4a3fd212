package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// lastAnswers is how long answers are waited for after the last request.
const lastAnswers = 2 * time.Second

// ping pings addresses at a fixed rate until its standard input is closed, or --count requests were sent, and counts.
func ping(args []string) error {
	flags := flag.NewFlagSet("ping", flag.ContinueOnError)
	interval := flags.Duration("interval", 50*time.Millisecond, "time between two requests to one address")
	count := flags.Int("count", 0, "how many requests to send to each address; 0 means until standard input is closed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	addrs, err := parseAddrs(flags.Args())
	if err != nil {
		return err
	}
	pingers := make([]*pinger, len(addrs))
	for i, addr := range addrs {
		if pingers[i], err = newPinger(context.Background(), addr, false); err != nil {
			return err
		}
	}
	done := ready()
	if *count > 0 {
		done = make(chan struct{})
	}
	reply := wire.SteadyReply{Series: make([]wire.Steady, len(addrs))}
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() {
			reply.Series[i] = pingSteadily(pingers[i], *interval, *count, done)
			reply.Series[i].Addr = addr
		})
	}
	wg.Wait()
	return printJSON(reply)
}

func pingSteadily(p *pinger, interval time.Duration, count int, done <-chan struct{}) wire.Steady {
	var t tally
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			seq, _, err := p.receive(time.Time{})
			if err == nil {
				t.got(seq, time.Now())
			} else if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			} // else: an ICMP error that a router sent shows here, and the ping counts as lost
		}
	}()
	everyTick(interval, done, func() bool {
		if err := p.send(t.sending(time.Now()), 56); err != nil {
			t.failed(err)
		}
		return count == 0 || t.sent() < count
	})
	waitComplete(&t, lastAnswers)
	end := time.Now()
	_ = p.Close() // ends the receiver
	<-received
	return t.result(end)
}

// stream keeps one TCP connection to an echo server open, and sends a small message at a fixed rate until its standard
// input is closed. Messages that are not echoed in time are lost; a broken connection is a failure.
func stream(args []string) error {
	flags := flag.NewFlagSet("stream", flag.ContinueOnError)
	interval := flags.Duration("interval", 50*time.Millisecond, "time between two messages")
	wait := flags.Duration("wait", 10*time.Second, "how long to wait for outstanding echoes at the end")
	to := flags.String("to", "", "ADDRESS:PORT of an echo server")
	if err := flags.Parse(args); err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", *to, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if _, err := readGreeting(r); err != nil {
		return err
	}
	done := ready()
	var t tally
	broken := make(chan error, 1)
	go func() { broken <- readEchoes(r, &t) }()
	everyTick(*interval, done, func() bool {
		if err := binary.Write(conn, binary.BigEndian, uint64(t.sending(time.Now()))); err != nil {
			t.failed(err)
			return false
		}
		return true
	})
	waitComplete(&t, *wait)
	result := t.result(time.Now())
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return err
	}
	result.Addr = remote.Addr()
	select {
	case err := <-broken:
		result.FirstError = err.Error()
	default:
	}
	return printJSON(wire.SteadyReply{Series: []wire.Steady{result}})
}

// readEchoes reads until the connection breaks; the messages of a TCP connection come back in order.
func readEchoes(r io.Reader, t *tally) error {
	for {
		var seq uint64
		if err := binary.Read(r, binary.BigEndian, &seq); err != nil {
			return fmt.Errorf("the connection broke: %w", err)
		}
		t.got(int(seq), time.Now())
	}
}

// everyTick runs step at a fixed rate until step says so or done is closed.
func everyTick(interval time.Duration, done <-chan struct{}, step func() (goOn bool)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for step() {
		select {
		case <-ticker.C:
		case <-done:
			return
		}
	}
}

// waitComplete waits until nothing is outstanding, within a bound.
func waitComplete(t *tally, atMost time.Duration) {
	for end := time.Now().Add(atMost); !t.complete() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

func parseAddrs(args []string) ([]netip.Addr, error) {
	if len(args) == 0 {
		return nil, errors.New("name at least one address")
	}
	var addrs []netip.Addr
	for _, arg := range args {
		addr, err := netip.ParseAddr(strings.TrimSpace(arg))
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}
