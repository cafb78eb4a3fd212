package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// printer writes what the lab answers, as -o says.
type printer struct{ output string }

// check refuses what -o does not know.
func (p *printer) check() error {
	if p.output != "table" && p.output != "json" {
		return fmt.Errorf("-o %s is not known; allowed: table, json", p.output)
	}
	return nil
}

// print writes v as JSON, or as the table that show writes.
func (p *printer) print(w io.Writer, v any, show func(io.Writer) error) error {
	if p.output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	return show(w)
}

const (
	red   = "31"
	green = "32"
	faint = "2"
)

// paint colors text on a terminal. It is used only for whole columns at the end of a line, and by the matrix, which
// aligns by itself.
func paint(w io.Writer, color, text string) string {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return text
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func state(out io.Writer, problem string) string {
	if problem != "" {
		return paint(out, red, problem)
	}
	return paint(out, green, "ready")
}

// join lists values, or says that there are none.
func join[T fmt.Stringer](list []T) string {
	if len(list) == 0 {
		return "-"
	}
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return strings.Join(texts, ",")
}
