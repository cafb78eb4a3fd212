package result

import (
	_ "embed" // the page's template
	"fmt"
	"strings"
	"text/template"
)

// PlotDirectory is where the page has its plots, below the page's own directory.
const PlotDirectory = "benchmarks"

//go:embed page.md.tmpl
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"number": Number, "row": func(cells []string) string { return "| " + strings.Join(cells, " | ") + " |" },
	"rule": func(cells []string) string { return strings.Repeat("|---", len(cells)+2) + "|" },
}).Parse(pageText))

// plotted is a metric of a run with what the page shows of it.
type plotted struct {
	Metric
	File string
	Rows []Row
}

// Row is a series in a table.
type Row struct {
	Case, System string
	Summary      Summary
}

// Page returns the page about a run and its plots, by their paths relative to the page.
func (r *Run) Page() (page string, plots map[string]string, err error) {
	plots = map[string]string{}
	var shown []plotted
	for _, m := range metrics {
		plot := r.Plot(m.Name)
		if plot == "" {
			continue
		}
		p := plotted{Metric: m, File: fmt.Sprintf("%s/%s.svg", PlotDirectory, m.Name)}
		for _, s := range r.Series {
			if s.Metric == m.Name {
				p.Rows = append(p.Rows, Row{Case: s.Case, System: s.System, Summary: s.Summary()})
			}
		}
		plots[p.File] = plot
		shown = append(shown, p)
	}
	var text strings.Builder
	names := r.countNames()
	err = pageTemplate.Execute(&text, map[string]any{
		"Run": r, "Metrics": shown, "Ratios": r.Ratios(), "CountNames": names, "Counts": r.countRows(names),
		"Busy":          max(r.LoadBefore, r.LoadAfter) > float64(r.Machine.Processors),
		"Circumstances": strings.ReplaceAll(r.Circumstances(), "\n", ".\n") + ".",
	})
	return text.String(), plots, err
}
