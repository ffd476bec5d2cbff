package audit

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/klauspost/compress/zstd"
)

// maxPayload bounds what a payload may unpack to, in bytes.
const maxPayload = 256 << 20

var (
	packer, _   = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	unpacker, _ = zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxPayload))
)

// Pack and Unpack are how payloads are stored, zstd.
func Pack(payload []byte) []byte { return packer.EncodeAll(payload, nil) }

// Unpack undoes Pack.
func Unpack(packed []byte) ([]byte, error) { return unpacker.DecodeAll(packed, nil) }

// Holds reports whether this is the payload that the record commits to.
func (p *Payload) Holds(payload []byte) bool {
	sum := sha256.Sum256(payload)
	return p.SHA256 == hex.EncodeToString(sum[:])
}
