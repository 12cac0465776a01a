package main

import (
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
	"image/color"
)

// panels are the charts of the plot, a row of four after another.
var panels = []struct{ title, column string }{
	{"down, 1 stream, MB/s", colDown1},
	{"up, 1 stream, MB/s", colUp1},
	{"down, 8 streams, MB/s", colDown8},
	{"up, 8 streams, MB/s", colUp8},
	{"CPU s/GB (less is better)", colCPU},
	{"round trip p50, µs (less)", colRTT50},
	{"p99 beside bulk, ms (less)", colBeside99},
	{"opens/s", colOpens},
	{"CPU per open, µs (less)", colOpenCPU},
	{"KB per idle stream (less)", colIdle},
	{"100 ms away: down, MB/s", colFar},
	{"100 ms away: first byte, ms (less)", colFarFirst},
}

const (
	panelsInRow = 4
	panelRows   = 3
	panelWidth  = 3 * vg.Inch
	panelHeight = 1.9 * vg.Inch
	barWidth    = vg.Length(9)
)

// plot writes the medians as bars, with a line from the least to the greatest round. The direct connection is left out:
// it would make the others too small to be told apart.
func (r *results) plot(file string) error {
	canvas := vgsvg.New(panelWidth*panelsInRow, panelHeight*panelRows)
	if err := r.draw(draw.New(canvas)); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := canvas.WriteTo(f); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func (r *results) draw(area draw.Canvas) error {
	tiles := draw.Tiles{
		Rows: panelRows, Cols: panelsInRow, PadX: vg.Points(8), PadY: vg.Points(10),
		PadTop: vg.Points(4), PadBottom: vg.Points(4), PadLeft: vg.Points(4), PadRight: vg.Points(8),
	}
	for i, panel := range panels {
		p, err := r.panel(panel.title, panel.column)
		if err != nil {
			return err
		}
		p.Draw(tiles.At(area, i%panelsInRow, i/panelsInRow))
	}
	return nil
}

// panel is one chart: a bar for every pair, the first pair at the top.
func (r *results) panel(title, column string) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = vg.Points(9)
	p.X.Min = 0
	p.X.Tick.Label.Font.Size, p.Y.Tick.Label.Font.Size = vg.Points(7), vg.Points(8)
	var names []string
	all := r.pairs()
	for i := len(all) - 1; i >= 0; i-- {
		name := all[i]
		x, ok := r.median(name, column)
		if name == directName || !ok {
			continue
		}
		bar, err := plotter.NewBarChart(plotter.Values{x}, barWidth)
		if err != nil {
			return nil, err
		}
		bar.Horizontal, bar.XMin, bar.LineStyle.Width = true, float64(len(names)), 0
		bar.Color = color.Gray{Y: 170}
		if name == culvertName {
			bar.Color = color.RGBA{R: 31, G: 119, B: 180, A: 255}
		}
		sorted := r.sorted(name, column)
		spread, err := plotter.NewLine(plotter.XYs{{X: sorted[0], Y: float64(len(names))}, {X: sorted[len(sorted)-1], Y: float64(len(names))}})
		if err != nil {
			return nil, err
		}
		p.Add(bar, spread)
		names = append(names, name)
	}
	if len(names) > 0 {
		p.NominalY(names...)
	}
	return p, nil
}
