package ofswitch

// OriginalPacket is for tests that begin connections.
var OriginalPacket = originalPacket
