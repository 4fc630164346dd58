package agent

import (
	"io"
	"log/slog"
)

// NewLogger makes the agent's logger. Durations are text in both formats
// (1.5s), which slog's own JSON would turn into nanoseconds without a unit.
func NewLogger(w io.Writer, cfg LogConfig) *slog.Logger {
	options := &slog.HandlerOptions{
		Level: slog.Level(cfg.Level),
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Value.Kind() == slog.KindDuration {
				a.Value = slog.StringValue(a.Value.Duration().String())
			}
			return a
		},
	}
	if cfg.Format == JSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
