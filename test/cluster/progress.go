package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/weft-cni/weft/internal/terminal"
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
	return &progress{out: out, terminal: terminal.Is(out), begun: time.Now()}
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
		p.line(terminal.Red, "✗", fmt.Sprintf("%s failed after %s", name, seconds(time.Since(start))))
		return err
	}
	if detail != "" {
		name += ": " + detail
	}
	p.line(terminal.Green, "✓", fmt.Sprintf("%s (%s)", name, seconds(time.Since(start))))
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

func (p *progress) line(color terminal.Color, sign, text string) {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	sign = terminal.Paint(p.out, color, sign)
	fmt.Fprintf(p.out, "%7s %s %s\n", seconds(time.Since(p.begun)), sign, text)
}

func (p *progress) print(text string) { fmt.Fprintln(p.out, text) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
