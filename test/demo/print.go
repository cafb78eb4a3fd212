package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/weft-cni/weft/internal/terminal"
)

// printer writes the tour: colors and lines that change in place are for terminals only.
type printer struct {
	out      io.Writer
	terminal bool // lines may change in place, and have colors
	chapters int
}

func newPrinter(out *os.File) *printer {
	return &printer{out: out, terminal: terminal.HasColors(out)}
}

func (p *printer) paint(c terminal.Color, text string) string {
	if !p.terminal {
		return text
	}
	return terminal.Escape(c, text)
}

// chapter begins the tour's next part.
func (p *printer) chapter(title string) {
	p.chapters++
	fmt.Fprintf(p.out, "\n%s\n", p.paint(terminal.Bold, fmt.Sprintf("%d. %s", p.chapters, title)))
}

// command shows what is typed, and result what came back.
func (p *printer) command(line string) {
	fmt.Fprintf(p.out, "  %s\n", p.paint(terminal.Cyan, "$ "+line))
}

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
	fmt.Fprintf(p.out, "  %s %s\n", p.paint(terminal.Green, "✓"), text)
}
