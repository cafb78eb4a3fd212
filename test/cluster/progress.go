package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// quietInterval is how often a long step says that it is still at work when its output is not a terminal.
const quietInterval = 20 * time.Second

// progress prints one line per step: how long the command has run, what was done and how long that took.
type progress struct {
	out      io.Writer
	terminal bool
	begun    time.Time
}

func newProgress(out *os.File) *progress {
	// A character device is not yet a terminal; only one of those has terminal settings.
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &progress{out: out, terminal: err == nil, begun: time.Now()}
}

// step runs f and prints its outcome. f may report what it is doing from any goroutine.
func (p *progress) step(name string, f func(detail func(string)) error) error {
	start := time.Now()
	var mu sync.Mutex
	var detail string
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		interval := quietInterval
		if p.terminal {
			interval = 200 * time.Millisecond
		}
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				mu.Lock()
				p.running(name, detail)
				mu.Unlock()
			}
		}
	}()
	err := f(func(text string) {
		mu.Lock()
		detail = text
		mu.Unlock()
	})
	close(done)
	<-stopped
	if err != nil {
		p.line("31", "✗", fmt.Sprintf("%s failed after %s", name, seconds(time.Since(start))))
		return err
	}
	if detail != "" {
		name += ": " + detail
	}
	p.line("32", "✓", fmt.Sprintf("%s (%s)", name, seconds(time.Since(start))))
	return nil
}

// running shows a step that is not done: in place on a terminal, as a line of its own elsewhere.
func (p *progress) running(name, detail string) {
	if detail != "" {
		name += ": " + detail
	}
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%7s … %s", seconds(time.Since(p.begun)), name)
		return
	}
	p.line("", "…", name)
}

func (p *progress) line(colour, sign, text string) {
	if p.terminal {
		sign = "\x1b[" + colour + "m" + sign + "\x1b[0m"
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	fmt.Fprintf(p.out, "%7s %s %s\n", seconds(time.Since(p.begun)), sign, text)
}

func (p *progress) print(text string) { fmt.Fprintln(p.out, text) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
