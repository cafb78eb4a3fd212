package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	bold  = "1"
	cyan  = "36"
	green = "32"
)

// printer writes the tour: colours and lines that change in place are for terminals only.
type printer struct {
	out      io.Writer
	terminal bool
	chapters int
}

func newPrinter(out *os.File) *printer {
	// A character device is not yet a terminal; only one of those has terminal settings.
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &printer{out: out, terminal: err == nil && os.Getenv("NO_COLOR") == ""}
}

func (p *printer) paint(colour, text string) string {
	if !p.terminal {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// chapter begins the tour's next part.
func (p *printer) chapter(title string) {
	p.chapters++
	fmt.Fprintf(p.out, "\n%s\n", p.paint(bold, fmt.Sprintf("%d. %s", p.chapters, title)))
}

// command shows what is typed, and result what came back.
func (p *printer) command(line string) { fmt.Fprintf(p.out, "  %s\n", p.paint(cyan, "$ "+line)) }

func (p *printer) result(text string) {
	for line := range strings.Lines(strings.Trim(text, "\n") + "\n") {
		fmt.Fprintln(p.out, strings.TrimRight("    "+line, " \n"))
	}
}

func (p *printer) say(text string) { fmt.Fprintf(p.out, "  %s\n", text) }

func (p *printer) gap() { fmt.Fprintln(p.out) }

// waiting shows how far something is, in place; done ends it. Elsewhere than on a terminal only the end is shown.
func (p *printer) waiting(text string) {
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K  … %s", text)
	}
}

func (p *printer) done(text string) {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	fmt.Fprintf(p.out, "  %s %s\n", p.paint(green, "✓"), text)
}
