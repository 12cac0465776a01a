package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// LogConfig says what is logged and in which form. Logs go to standard error.
type LogConfig struct {
	// Level is the least level that is logged: `debug`, `info`, `warn` or `error`. Default `info`,
	// which has one record per flow.
	Level string `yaml:"level"`
	// Format is `text` (key=value, for people) or `json` (for machines). Default `text`.
	Format string `yaml:"format"`
}

// level is the parsed Level; unknown words have been refused by validate.
func (c LogConfig) level() slog.Level {
	l, err := parseLevel(c.Level)
	if err != nil {
		return slog.LevelInfo
	}
	return l
}

func parseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is no log level; it should be debug, info, warn or error", s)
}

func checkLogFormat(s string) error {
	if s != "" && s != "text" && s != "json" {
		return fmt.Errorf("%q is no log format; it should be text or json", s)
	}
	return nil
}

// logging is a logger whose level a reload can change. The format stays for the life of the process.
type logging struct {
	*slog.Logger
	level *slog.LevelVar
}

func newLogging(w io.Writer, cfg LogConfig) *logging {
	level := new(slog.LevelVar)
	level.Set(cfg.level())
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, options)
	if cfg.Format == "json" {
		h = slog.NewJSONHandler(w, options)
	}
	return &logging{Logger: slog.New(h), level: level}
}
