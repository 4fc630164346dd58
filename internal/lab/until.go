package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Until asks again and again until ok returns nil, at most for the time. When
// that is over, or ctx is, it returns what ok returned last.
func Until(ctx context.Context, limit time.Duration, ok func() error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-limited.Done():
			if ctx.Err() == nil {
				return fmt.Errorf("not within %v: %w", limit, err)
			}
			return errors.Join(ctx.Err(), err)
		case <-ticker.C:
		}
	}
}
